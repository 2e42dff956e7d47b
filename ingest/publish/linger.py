"""Lets requests gather before the node looks for them, while they come often.

A process that wakes up for one request, and again for Redis's reply, pays more for that than for the request itself,
and so does Redis. So after a batch was sent, the event loop stands still until LINGER_MAX_S after it woke up last, less
the more callbacks it has sent since. Then it finds the replies and the requests that have come meanwhile all at once:
one wake-up, one append and one reply for all of them. Network cards do the same with interrupts (interrupt
coalescing), and producers of message queues with records (`linger.ms`).

| what comes | the loop |
| --- | --- |
| a request after a quiet time, LINGER_MAX_S or longer | stands still for nothing |
| LINGER_FULL callbacks and more in that time | never stands still: they gather by themselves |
| half of the requests or more from senders that wait for answers | never: these would send nothing meanwhile |
| others | stands still after each batch |

A callback's `received_at` is when its request is read.
"""

import asyncio
import time
from math import inf
from typing import Final

LINGER_MAX_S: Final = 0.002
"""The longest that the loop stands still. An answer comes later by twice that at most: the request waits to be read,
and then Redis's reply."""

WAITING_SENDER_S: Final = 2 * LINGER_MAX_S
"""A sender waits for answers if its next request comes so soon after one, on the same connection. Plivo sends what
happens in other sessions meanwhile; a program that measures, or sends again what it has kept, may not."""

LINGER_FULL: Final = 16
"""So many callbacks share a wake-up well enough: what it costs each of them is little already."""


def linger_until_s(woke_s: float, callbacks: int, from_waiting: int) -> float:
    """Until when to stand still, by the clock of `woke_s`; a time that has passed means not at all. Pure.

    `woke_s`: when the loop woke up last. `callbacks`: how many it has sent since, and `from_waiting`: how many requests
    came from senders that wait for answers.
    """
    if 2 * from_waiting >= callbacks:
        return woke_s
    return woke_s + LINGER_MAX_S * max(0.0, 1 - callbacks / LINGER_FULL)


class Linger:
    """The pauses of one event loop, for all that publish on it."""

    __slots__ = ("_callbacks", "_loop", "_scheduled", "_woke_s", "from_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woke_s = -inf
        self._callbacks = 0
        """Sent since then."""
        self.from_waiting = 0
        """Requests since then from senders that wait for answers: whoever reads requests counts them."""
        self._scheduled = False

    def sent(self, callbacks: int) -> None:
        """Stand still, if it is worth it, now that a batch was sent: as soon as the loop has nothing else to do."""
        self._callbacks += callbacks
        if self._scheduled:
            return
        now = time.monotonic()
        if self._until_s() > now:
            self._scheduled = True
            # Not within this turn: other publishers send in it as well, and uvloop may write only at its end.
            self._loop.call_soon(self._pause)
        else:
            self._awake(now)

    def _pause(self) -> None:
        self._scheduled = False
        pause_s = self._until_s() - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        self._awake(time.monotonic())

    def _until_s(self) -> float:
        return linger_until_s(self._woke_s, self._callbacks, self.from_waiting)

    def _awake(self, now_s: float) -> None:
        self._woke_s = now_s
        self._callbacks = self.from_waiting = 0
