"""The event loop that every process runs on: uvloop's where uvloop is installed, asyncio's own elsewhere."""

import asyncio
from collections.abc import Callable
from typing import TypeVarTuple

Given = TypeVarTuple("Given")


def loop_factory(
    on_signal_handler: Callable[[], object] = lambda: None,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """What `asyncio.Runner` makes its loop with.

    `on_signal_handler()`: called when a signal handler was set or removed by way of the loop. asyncio's own loop does
    that by `signal.signal`, and needs no such call.
    """
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop

    class Loop(uvloop.Loop):
        """uvloop has its own way to `signal.signal`."""

        def add_signal_handler(self, sig: int, callback: Callable[[*Given], object], *args: *Given) -> None:
            super().add_signal_handler(sig, callback, *args)
            on_signal_handler()

        def remove_signal_handler(self, sig: int) -> bool:
            removed = super().remove_signal_handler(sig)
            on_signal_handler()
            return removed

    return Loop
