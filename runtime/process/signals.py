"""SIGTERM and SIGINT stop this process, even where other code sets handlers of its own for them.

A handler module, or a library that it uses, may take a signal for itself, ignore it, or block it, at any moment. The
stop must not depend on that. While `StopSignals` is entered, `signal.signal` leaves our handler in place for these two
and keeps the other one, which is called after ours. `restore` undoes changes that bypass `signal.signal` (an event loop
in C, a mask). A warning names the code that took the signal, unless it is C code.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self

from maskline.runtime.logs import get_logger

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SECOND_SIGNAL_AFTER_S: Final = 0.5
"""Signals closer together count as one request: a service manager signals all processes of a group, and their
supervisor passes on the signal that it gets itself."""

_EVENT_LOOPS: Final = ("asyncio", "uvloop", "signal")
"""Modules that set signal handlers on behalf of their caller, so the warning names the caller instead."""

_log = get_logger("maskline.process")


class StopSignals:
    """Counts the requests to stop: none, 1 (stop) or 2 (stop at once). A context manager, for the main thread.

    `on_signal(requests)` is called in the signal handler, which may interrupt the program anywhere.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self.requests = 0
        self._requested_at = 0.0
        self._on_signal = on_signal
        self._own_handler = self._handle_signal
        self._before: dict[int, Any] = {}
        self._other_handlers: dict[int, Any] = {}
        self._other_errors: list[BaseException] = []
        self._real_signal: Callable[[Any, Any], Any] = signal.signal

    def __enter__(self) -> Self:
        self._real_signal = signal.signal
        self._before = {signum: self._real_signal(signum, self._own_handler) for signum in SIGNALS}
        signal.signal = self._replace_signal  # type: ignore[assignment]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.signal == self._replace_signal:
            signal.signal = self._real_signal  # type: ignore[assignment]
        # Once a stop was requested the process is about to exit: a late signal of the same request must not turn its
        # exit code into "killed".
        for signum, handler in self._before.items():
            self._real_signal(signum, signal.SIG_IGN if self.requests else handler)
        self._before = {}

    def restore(self) -> None:
        """Set our handler again where other code has bypassed `signal.signal`, and unblock both signals.

        Logs what it undoes, and errors that could not be logged within a signal handler.
        """
        for signum in SIGNALS:
            current = signal.getsignal(signum)
            # Even where Python believes that ours is set: faulthandler, or a library, may have set another in C.
            self._real_signal(signum, self._own_handler)
            if current != self._own_handler:
                self._warn_of_taker(signum, current, _describe(current))
        for blocked in signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) & set(SIGNALS):
            _log.warning("signal blocked by other code", signal=_signal_name(blocked))
        while self._other_errors:
            _log.warning("signal handler of other code failed", exc_info=self._other_errors.pop())

    def _replace_signal(self, signum: Any, handler: Any) -> Any:
        """Stands in for `signal.signal` while this is entered."""
        if signum not in self._before:
            return self._real_signal(signum, handler)
        self._real_signal(signum, self._own_handler)  # raises what a wrong thread deserves
        if not callable(handler):
            handler = signal.Handlers(handler)  # as does signal.signal: ValueError, TypeError
        before = self._other_handlers.get(signum, self._before[signum])
        self._warn_of_taker(signum, handler, _caller_of_signal())
        return before

    def _warn_of_taker(self, signum: int, handler: Any, by: str) -> None:
        given_back = handler in (self._before[signum], signal.SIG_DFL, signal.default_int_handler)
        self._other_handlers[signum] = handler
        if not given_back:
            _log.warning("signal taken by other code", signal=_signal_name(signum), by=by)

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requests and now - self._requested_at < SECOND_SIGNAL_AFTER_S:
            return
        self.requests += 1
        self._requested_at = now
        self._on_signal(self.requests)
        other = self._other_handlers.get(signum)
        if callable(other) and other is not signal.default_int_handler:
            try:
                other(signum, frame)
            except BaseException as error:  # noqa: BLE001  it may raise SystemExit to end what we stop
                self._other_errors.append(error)


def _caller_of_signal() -> str:
    """Who called `signal.signal`, or the event loop that did: file, line and function."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  documented, for such purposes
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        *_EVENT_LOOPS,
        __name__.partition(".")[0],
    ):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


def _describe(handler: Any) -> str:
    code = getattr(handler, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno} {code.co_name}"
    name = getattr(handler, "__qualname__", "")
    return f"{getattr(handler, '__module__', '')}.{name}" if name else str(getattr(handler, "name", handler))


def _signal_name(signum: Any) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(signum).name
    return str(signum)
