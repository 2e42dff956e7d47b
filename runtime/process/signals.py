"""SIGTERM and SIGINT: what they ask of this process, whoever else takes them.

A handler module, or a library that it uses, may take a signal for itself, ignore it, or block it, at any moment. The
stop must not depend on that. While `Signals` is entered, `signal.signal` leaves ours in place for these two and keeps
theirs, which is called after ours; what goes past `signal.signal` (an event loop in C, a mask) is undone by `look`.
A warning names who took the signal, unless C code did.
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
"""Signals closer together are one wish: a service manager signals all processes of a group, and so does their
supervisor when it is signalled."""

_PLUMBING: Final = ("asyncio", "uvloop", "signal")
"""Packages that take signals on behalf of their caller."""

_log = get_logger("maskline.process")


class Signals:
    """Counts what SIGTERM and SIGINT ask for: 0 nothing, 1 to stop, 2 to stop at once. For the main thread.

    `on_signal(asked)` is called in the signal handler, at any place of the program.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self.asked = 0
        self._asked_at = 0.0
        self._on_signal = on_signal
        self._ours = self._handle
        self._before: dict[int, Any] = {}
        self._theirs: dict[int, Any] = {}
        self._failed: list[BaseException] = []
        self._real: Callable[[Any, Any], Any] = signal.signal

    def __enter__(self) -> Self:
        self._real = signal.signal
        self._before = {signum: self._real(signum, self._ours) for signum in SIGNALS}
        signal.signal = self._signal  # type: ignore[assignment]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.signal == self._signal:
            signal.signal = self._real  # type: ignore[assignment]
        # Once the stop was asked for the process is about to exit: a late signal of the same wish must not turn
        # its exit code into "killed".
        for signum, handler in self._before.items():
            self._real(signum, signal.SIG_IGN if self.asked else handler)
        self._before = {}

    def look(self) -> None:
        """Put ours back where something went past `signal.signal`; log what could not be logged in a handler."""
        for signum in SIGNALS:
            current = signal.getsignal(signum)
            # Also where it is ours for all that Python knows: faulthandler, or a library, takes it in C.
            self._real(signum, self._ours)
            if current != self._ours:
                self._take(signum, current, _named(current))
        for blocked in signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) & set(SIGNALS):
            _log.warning("signal blocked by other code", signal=_name(blocked))
        while self._failed:
            _log.warning("signal handler of other code failed", exc_info=self._failed.pop())

    def _signal(self, signum: Any, handler: Any) -> Any:
        """What `signal.signal` is meanwhile."""
        if signum not in self._before:
            return self._real(signum, handler)
        self._real(signum, self._ours)  # raises what a wrong thread deserves
        if not callable(handler):
            handler = signal.Handlers(handler)  # as does signal.signal: ValueError, TypeError
        before = self._theirs.get(signum, self._before[signum])
        self._take(signum, handler, _caller())
        return before

    def _take(self, signum: int, handler: Any, by: str) -> None:
        given_back = handler in (self._before[signum], signal.SIG_DFL, signal.default_int_handler)
        self._theirs[signum] = handler
        if not given_back:
            _log.warning(
                "signal taken by other code",
                signal=_name(signum), by=by,
            )  # fmt: skip

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._asked_at < SECOND_SIGNAL_AFTER_S:
            return
        self.asked += 1
        self._asked_at = now
        self._on_signal(self.asked)
        theirs = self._theirs.get(signum)
        if callable(theirs) and theirs is not signal.default_int_handler:
            try:
                theirs(signum, frame)
            except BaseException as error:  # noqa: BLE001  it may raise SystemExit to end what we stop
                self._failed.append(error)


def _caller() -> str:
    """Who called `signal.signal`, or the event loop that did: file, line and function."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  documented, for such purposes
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        *_PLUMBING,
        __name__.partition(".")[0],
    ):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


def _named(handler: Any) -> str:
    code = getattr(handler, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno} {code.co_name}"
    name = getattr(handler, "__qualname__", "")
    return f"{getattr(handler, '__module__', '')}.{name}" if name else str(getattr(handler, "name", handler))


def _name(signum: Any) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(signum).name
    return str(signum)
