"""Reports a handler that blocks the event loop while it does so: from a thread, as nothing on the loop can run.

While the loop is blocked no lease is renewed and no other session moves. So the log line comes at once, with the
handler's name and its current line of code.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from maskline.runtime.logs import get_logger
from maskline.runtime.tasks import BackgroundTasks

BLOCKED_AFTER_S: Final = 1.0
"""A loop that has not turned for this long is blocked. A fifth of the default lease."""

CHECK_INTERVAL_S: Final = 0.25
"""How often the loop sends a beat, and how often the thread checks for it."""

FRAMES_SHOWN: Final = 3
"""Innermost lines of code in the log."""

START_INTERVAL_S: Final = 5.0
"""Between tries to start the thread. A lack of threads lasts, and handlers need them more."""

NAME: Final = "watchdog"
"""The watchdog's name among the background tasks."""

_log = get_logger("maskline.worker")


class Watchdog:
    """Watches the event loop. `handler_on_loop()`: the name of the handler that runs on it. `on_block()`: called at
    every block.

    `background`: counts each time the thread does not start, or has died; it is started again.
    """

    def __init__(
        self, handler_on_loop: Callable[[], str], on_block: Callable[[], None], background: BackgroundTasks
    ) -> None:
        self._handler_on_loop = handler_on_loop
        self._on_block = on_block
        self._background = background
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._start_at = 0.0
        self._timer = background.every(NAME, CHECK_INTERVAL_S, self._send_beat)
        self._ensure_thread()

    def stop(self) -> None:
        """End the thread, and the beats of the loop."""
        self._timer.cancel()
        self._stopped.set()

    def _send_beat(self) -> None:
        self._beat = time.monotonic()
        self._ensure_thread()

    def _ensure_thread(self) -> None:
        """Start the thread if it does not live, at most once in START_INTERVAL_S."""
        if (self._thread is not None and self._thread.is_alive()) or time.monotonic() < self._start_at:
            return
        if self._thread is not None:
            self._background.failed(NAME, self._error or RuntimeError("its thread has ended"))
        self._start_at = time.monotonic() + START_INTERVAL_S
        thread = threading.Thread(target=self._run, name="maskline-watchdog", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no thread to be had
            self._thread = None
            self._background.failed(NAME, error)
        else:
            self._thread = thread

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # noqa: BLE001  the loop reports it
            self._error = error

    def _watch(self) -> None:
        reported = 0.0
        slept_at = time.monotonic()
        while not self._stopped.wait(CHECK_INTERVAL_S):
            now = time.monotonic()
            # If this thread did not run either, the whole process was stopped: no handler is to blame.
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
                    "event loop blocked",
                    handler=self._handler_on_loop() or None,
                    at=self._innermost_frames(),
                )

    def _innermost_frames(self) -> list[str]:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  documented, for this very purpose
        if frame is None:
            return []
        return [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack(frame)[-FRAMES_SHOWN:]]
