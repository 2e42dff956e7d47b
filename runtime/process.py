"""Processes: the event loop of one, the supervision of several, and how a command ends.

One process: SIGTERM and SIGINT ask `main` to stop; a second one ends it at once with 130. What hangs at the
stop (a blocked loop, a thread that never returns) is ended by a deadline, not by the patience of an operator.

Several: the supervisor starts children in process groups of their own, so that Ctrl-C on a terminal reaches
them once and from here; passes the stop on; starts again what died; and takes the children with it even when
it is killed itself (the kernel sends them SIGTERM, on Linux).
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, Self

from runtime.logs import dump_descriptor, get_logger, say
from schemas.errors import ConfigError, MasklineError

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_KILLED: Final = 130
"""What shells give a command that Ctrl-C ended."""
PROCESSES_MAX: Final = 256
"""More than any machine has use for: a slip of the finger must not start thousands."""
SECOND_SIGNAL_AFTER_S: Final = 0.5
"""Signals closer together are one wish: a service manager signals all processes of a group, and so does their
supervisor when it is signalled."""
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STEADY_S: Final = 30.0
"""A child that ran this long was well: its next restart waits RESTART_FIRST_S again."""
GRACE_MS: Final = 5000
"""On top of the stop timeout, for the closing of connections after the work has stopped."""
THREADS_GRACE_S: Final = 5.0
"""How long threads may keep a process from ending once its main has returned."""
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_log = get_logger("maskline.process")


class _Signals:
    """Counts what SIGTERM and SIGINT ask for: 0 nothing, 1 to stop, 2 to stop at once."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self.asked = 0
        self._asked_at = 0.0
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        # Once the stop was asked for the process is about to exit: a late signal of the same wish must not turn
        # its exit code into "killed". What hangs from here on, _exit_later ends.
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_IGN if self.asked else handler)

    def _handle(self, _signum: int, _frame: object) -> None:
        now = time.monotonic()
        if self.asked and now - self._asked_at < SECOND_SIGNAL_AFTER_S:
            return
        self.asked += 1
        self._asked_at = now
        self._on_signal(self.asked)


def run(main: Callable[[asyncio.Event], Awaitable[int]], *, stop_timeout_ms: int | None = None) -> int:
    """Run `main(stop)` to its exit code, by uvloop where it exists; SIGTERM and SIGINT set `stop`.

    With `stop_timeout_ms`, a process that is still there so long (and GRACE_MS) after the signal shows on
    stderr where it hangs, and exits with 1.
    """
    loop: asyncio.AbstractEventLoop | None = None
    stop = asyncio.Event()

    def on_signal(asked: int) -> None:
        if asked > 1:
            os._exit(EXIT_KILLED)
        if stop_timeout_ms is not None:
            _arm_deadline(stop_timeout_ms + GRACE_MS)
        if loop is None:
            stop.set()
        else:
            with contextlib.suppress(RuntimeError):  # closed: there is nothing left to stop
                loop.call_soon_threadsafe(stop.set)

    async def body() -> int:
        nonlocal loop
        loop = asyncio.get_running_loop()
        return await main(stop)

    # Python's own handlers, not the loop's: the second signal must end a process whose loop is blocked.
    code = 1
    with _Signals(on_signal):
        runner = asyncio.Runner(loop_factory=_loop_factory())
        try:
            code = runner.run(body())
        finally:
            # Closing the loop joins the threads of its executor; one that hangs must not keep the process.
            deadline = _exit_later(code)
            runner.close()
            deadline.cancel()
            faulthandler.cancel_dump_traceback_later()
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def _arm_deadline(timeout_ms: int) -> None:
    # By a thread of the C runtime: it fires even while an extension holds the interpreter. Stacks, no values.
    try:
        # To where no reader is waited for: the dump comes before the exit.
        faulthandler.dump_traceback_later(timeout_ms / 1000, exit=True, file=dump_descriptor())
    except (OSError, ValueError):
        _log.warning("no deadline for the stop: stderr is closed")


def _exit_later(code: int) -> threading.Timer:
    timer = threading.Timer(THREADS_GRACE_S, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


def cli(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command with the process's arguments and exit as the contract says."""
    try:
        code = main(sys.argv[1:])
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except ConfigError as error:
        code = EXIT_USAGE
        _complain(error)
    except MasklineError as error:
        code = EXIT_PROBLEM
        _complain(error)
    except KeyboardInterrupt:
        code = EXIT_KILLED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; without this Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_PROBLEM
    _exit_later(code)
    sys.exit(code)


def _complain(error: MasklineError) -> None:
    say(f"maskline: {' '.join(str(error).split())}")


class _Child:
    """One place among the supervised: its present process, or when to start the next."""

    def __init__(self, index: int, argv: Sequence[str]) -> None:
        self.index = index
        self.argv = [sys.executable, "-m", *argv, "--index", str(index)]
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.started_at = 0.0
        self.backoff_s = RESTART_FIRST_S

    def start(self) -> None:
        self.started_at = time.monotonic()
        try:
            self.process = self._spawn()
        except OSError as error:  # no memory, no more processes: that may pass
            wait_s = self._plan_restart()
            _log.error("process not started", index=self.index, error=str(error), wait_s=wait_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command line
            self.argv,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - the supervisor has no other threads
        )

    def reap(self) -> int | None:
        """The exit code, once, if the process has ended since the last look; then the restart is planned."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self._plan_restart()
        return code

    def _plan_restart(self) -> float:
        now, wait_s = time.monotonic(), self.backoff_s
        if now - self.started_at >= STEADY_S:
            wait_s = RESTART_FIRST_S
        self.start_at = now + wait_s
        self.backoff_s = min(wait_s * 2, RESTART_MAX_S)
        return wait_s

    def send(self, signum: int) -> None:
        if self.process is not None:
            self.process.send_signal(signum)


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew our wish
            os._exit(1)

    return in_child


def supervise(argv: Sequence[str], processes: int, *, stop_timeout_ms: int = 10_000) -> int:
    """Keep `processes` children `python -m *argv --index i` running until SIGTERM or SIGINT.

    Exit codes: 0 after a clean stop, 2 as soon as a child ends with 2 (the others are stopped), 1 where a
    child failed at the stop or had to be killed, 130 after a second signal.
    """
    if not 1 <= processes <= PROCESSES_MAX:
        raise ConfigError(f"--processes must be a whole number from 1 to {PROCESSES_MAX}")
    return _Supervisor(argv, processes, stop_timeout_ms).run()


class _Supervisor:
    def __init__(self, argv: Sequence[str], processes: int, stop_timeout_ms: int) -> None:
        self.children = [_Child(index, argv) for index in range(processes)]
        # A child ends itself GRACE_MS after its stop timeout; only what cannot even do that is killed.
        self.kill_after_s = (stop_timeout_ms + 2 * GRACE_MS) / 1000
        self.kill_at: float | None = None
        """Set once stopping."""
        self.code = 0

    def run(self) -> int:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        # Signals, the end of a child among them, wake the select below.
        on_child = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        with reader, writer, _Signals(lambda _asked: None) as signals:
            try:
                while self._step(signals.asked):
                    select.select([reader], [], [], self._wait_s())
                    with contextlib.suppress(BlockingIOError):
                        reader.recv(4096)
            finally:
                signal.set_wakeup_fd(wakeup)
                signal.signal(signal.SIGCHLD, on_child)
                for child in self.children:  # all have ended, unless we failed ourselves
                    child.send(signal.SIGKILL)
        return EXIT_KILLED if signals.asked > 1 else self.code

    def _step(self, asked: int) -> bool:
        """Look at everything once; False when all is over."""
        self._reap()
        now = time.monotonic()
        if self.kill_at is None:
            if asked:
                self._stop(now)
            else:
                for child in self.children:
                    if child.process is None and child.start_at <= now:
                        child.start()
                return True
        running = [child for child in self.children if child.process is not None]
        if asked > 1 or (self.kill_at is not None and now >= self.kill_at):
            self._kill(running, now)
        return bool(running)

    def _reap(self) -> None:
        for child in self.children:
            code = child.reap()
            if code is None:
                continue
            if self.kill_at is not None:
                # SIGTERM may have reached it before it had set up anything: nothing was under way.
                if code not in (0, -signal.SIGTERM):
                    self.code = self.code or EXIT_PROBLEM
            elif code == EXIT_USAGE:
                # It has said on stderr what is wrong; the others would say the same for ever.
                self.code = EXIT_USAGE
                self._stop(time.monotonic())
            else:
                wait_s = round(child.start_at - time.monotonic(), 1)
                _log.error(
                    "process died, starting it again", index=child.index, exit_code=code, wait_s=wait_s
                )

    def _stop(self, now: float) -> None:
        self.kill_at = now + self.kill_after_s
        for child in self.children:
            child.send(signal.SIGTERM)

    def _kill(self, running: Sequence[_Child], now: float) -> None:
        self.kill_at = now + self.kill_after_s
        for child in running:
            _log.error("process killed, it has not stopped", index=child.index)
            child.send(signal.SIGKILL)

    def _wait_s(self) -> float | None:
        """How long nothing has to be done unless a signal comes."""
        if self.kill_at is not None:
            return max(0.0, self.kill_at - time.monotonic())
        starts = [child.start_at for child in self.children if child.process is None]
        return max(0.0, min(starts) - time.monotonic()) if starts else None
