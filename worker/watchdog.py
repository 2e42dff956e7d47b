"""Notices a handler that blocks the event loop, while it does: from a thread, since nothing on the loop can.

While the loop is blocked no lease is renewed and no other session moves, so the log line must come then and there,
with the handler's name and the line it is at.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from runtime.logs import get_logger

BLOCKED_AFTER_S: Final = 1.0
"""The loop did not turn for so long: a warning. A fifth of the default lease."""

CHECK_INTERVAL_S: Final = 0.25
FRAMES_SHOWN: Final = 3

_log = get_logger("maskline.worker")


class Watchdog:
    """`suspect()` names the handler that was started last; `on_block()` counts."""

    def __init__(self, suspect: Callable[[], str], on_block: Callable[[], None]) -> None:
        self._suspect = suspect
        self._on_block = on_block
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._turn)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="maskline-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._timer.cancel()
        self._stopped.set()

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._turn)

    def _watch(self) -> None:
        reported = 0.0
        slept_at = time.monotonic()
        while not self._stopped.wait(CHECK_INTERVAL_S):
            now = time.monotonic()
            # Where this thread did not run either, the whole process was stopped: nobody's handler is to blame.
            paused = now - slept_at > BLOCKED_AFTER_S
            slept_at = now
            if (
                not paused
                and now - self._beat > BLOCKED_AFTER_S + CHECK_INTERVAL_S
                and self._beat != reported
            ):
                reported = self._beat
                self._on_block()
                _log.warning(
                    "the event loop is blocked: a handler works without awaiting; make it a plain def",
                    handler=self._suspect() or None,
                    at=self._where(),
                )

    def _where(self) -> list[str]:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  documented, for this very purpose
        if frame is None:
            return []
        return [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack(frame)[-FRAMES_SHOWN:]]
