"""Sends the read that follows another one: at once, at a time, or earlier when there is a reason to."""

import asyncio
import math
from collections.abc import Callable
from time import monotonic

from maskline.worker.streams.read_request import ReadRequest


class NextRead:
    """The next read of one poller; one at a time. Times are those of `time.monotonic`, in seconds.

    It is sent by a timer of the loop, so also while the entries of the last read are processed.
    """

    __slots__ = ("_earliest_at", "_hastened", "_loop", "_result", "_send", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._send: Callable[[], ReadRequest | None] | None = None
        """None while no read waits."""
        self._result: asyncio.Future[ReadRequest | None] = self._loop.create_future()
        self._earliest_at = 0.0
        self._hastened = False
        """Since the last read was sent."""

    def schedule(
        self, send: Callable[[], ReadRequest | None], *, earliest_at: float, latest_at: float
    ) -> asyncio.Future[ReadRequest | None]:
        """Call `send` at `latest_at`, or after `hasten`, but not before `earliest_at`; now if the time has passed.

        A `hasten` since the last call of a `send` counts. `latest_at`: infinite if only `hasten` may send it.
        The future holds what `send` returns or raises.
        """
        self.cancel()
        self._send, self._earliest_at = send, earliest_at
        self._result = result = self._loop.create_future()
        wait_s = (earliest_at if self._hastened else max(earliest_at, latest_at)) - monotonic()
        if wait_s <= 0:
            self._fire()
        elif wait_s < math.inf:
            self._timer = self._loop.call_later(wait_s, self._fire)
        return result

    def hasten(self) -> None:
        """Send the read that waits, or else the next one, as soon as it may be sent; not within this call."""
        if self._hastened:
            return  # the timer is set: setting it anew with each turn of the loop would put the read off for ever
        self._hastened = True
        if self._send is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, self._earliest_at - monotonic()), self._fire)

    def cancel(self) -> None:
        """Do not send the read that waits, if one does."""
        self._send = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        send, result = self._send, self._result
        self.cancel()
        self._hastened = False
        if send is None or result.done():
            return
        try:
            result.set_result(send())
        except Exception as error:  # noqa: BLE001 - the poller, which awaits the result, ends by it
            result.set_exception(error)
