"""Decides when the next read of a server's streams is sent. Pure.

| the last read | the next is sent |
| --- | --- |
| brought a few entries, and left nothing behind | READ_INTERVAL_S after the last was sent, sooner if it brought more |
| brought nothing, or READ_FULL entries, or left something behind | at once |

Each read is a wake-up of the server and of the worker, and names every partition of the server: at a thousand callbacks
a second, one for each callback costs more than the callback itself. So small reads keep a distance, and bring what has
gathered. Ten entries share that cost as well as twenty do, and under load a callback waits for the others anyway: so
the distance falls with what the last read brought. It counts from when the last read was sent: one that waited at the
server for longer, as it does at modest rates, is followed by the next at once, without a timer. So a callback that
comes after a quiet time, of two intervals or longer, waits for nothing.
"""

from typing import Final

READ_INTERVAL_S: Final = 0.004
"""The greatest distance between two reads, and so the most that it adds to the latency of a callback."""

READ_FULL: Final = 32
"""A read that brings so many entries has gathered enough."""


def next_read_at(sent_at: float, entries: int, *, more: bool) -> float:
    """When to send the next read, by the clock of `sent_at`; a time that has passed means at once.

    `sent_at`: when the last read was sent. `entries`: how many it brought. `more`: it may have left some behind.
    """
    if more or entries == 0 or entries >= READ_FULL:
        return sent_at
    return sent_at + READ_INTERVAL_S * (1 - entries / READ_FULL)
