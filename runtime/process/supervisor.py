"""Runs several processes of one command: starts, watches, restarts and stops them together.

- Children run in process groups of their own, so Ctrl-C on a terminal reaches them once, by way of the supervisor. They
  end with their supervisor, even when it is killed.
- A child that ends is started again after a backoff, with any exit code, and takes no sibling with it. Only if all
  children have exited with code 2 and none ever came up, the configuration is wrong: the supervisor then exits with 2
  and one line.
- A child whose event loop is blocked is reported, then killed and started again. Silence is counted by the supervisor's
  own turns, so time in which the supervisor itself was stopped, or starved, does not count against a child.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final, Literal

from maskline.runtime.logs import get_logger
from maskline.runtime.process.run import EXIT_KILLED, EXIT_PROBLEM, EXIT_USAGE, GRACE_MS
from maskline.runtime.process.signals import StopSignals
from maskline.runtime.process.supervisor_pipe import FAILED, REASON_MAX_BYTES, UP, VARIABLE
from maskline.schemas.errors import ConfigError

PROCESSES_MAX: Final = 256
"""More than any machine has use for: a slip of the finger must not start thousands."""
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STEADY_S: Final = 30.0
"""A child that ran this long was healthy: its next restart waits RESTART_FIRST_S again."""
SIBLINGS_WAIT_S: Final = 10.0
"""How long a child that failed its first start waits for its siblings before the next: if all fail, one line does."""
CHECK_INTERVAL_S: Final = 1.0
"""How often the children's pipes are read."""
TURN_MAX_S: Final = 2.0
"""The most that one turn of the supervisor adds to a child's silence, however long it took."""
SILENT_WARN_S: Final = 10.0
"""Or half of what kills it, if that is less."""
SILENT_KILL_S: Final = 30.0
"""A handler may block the loop for a while, and its own worker warns of that. A worker whose loop was blocked for this
long has lost its leases several times over, and connections that the kernel gave to an ingest process wait as long."""
START_WARN_S: Final = 60.0
START_KILL_S: Final = 300.0
"""Before a child is up: it imports handler modules and opens resources then, and some of these load much."""

_READ_BYTES: Final = 65_536

_log = get_logger("maskline.process")


class SilenceTimer:
    """How long a child has sent nothing, and when to warn of it or kill it. Pure. `kill_s`: once the child is up."""

    def __init__(self, kill_s: float) -> None:
        self._kill_s = kill_s
        self._warned = False
        self.seconds = 0.0
        self.up = False

    def heard(self) -> bool:
        """Reset the silence, as the child has sent something. Returns whether a warning was given before."""
        self.seconds = 0.0
        warned, self._warned = self._warned, False
        return warned

    def elapse(self, turn_s: float) -> Literal["", "warn", "kill"]:
        """Count one turn of the supervisor, which took `turn_s`, without a line from the child. Returns what to do
        about it.
        """
        self.seconds += min(turn_s, TURN_MAX_S)
        warn_s, kill_s = START_WARN_S, START_KILL_S
        if self.up:
            warn_s, kill_s = min(SILENT_WARN_S, self._kill_s / 2), self._kill_s
        if self.seconds >= kill_s:
            return "kill"
        if self.seconds >= warn_s and not self._warned:
            self._warned = True
            return "warn"
        return ""


class Child:
    """One of the supervised processes: the running process, or when to start the next. `argv`: what follows `-m`."""

    def __init__(self, index: int, argv: Sequence[str], silent_kill_s: float = SILENT_KILL_S) -> None:
        self.index = index
        # -P: nothing that lies in the working directory may take the place of a module of ours.
        self.argv = [sys.executable, "-P", "-m", *argv, "--index", str(index)]
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.started_at = 0.0
        self.backoff_s = RESTART_FIRST_S
        self.exit_code: int | None = None
        """Exit code of the process that ended last."""
        self.reason = ""
        """Why the running process, or the last one, could not start, as it reported itself."""
        self.killed = False
        self.silence_timer = SilenceTimer(silent_kill_s)
        self._silent_kill_s = silent_kill_s
        self._pipe: int | None = None
        self._read = b""

    def start(self) -> None:
        """Start a process; plans the next try where the system starts none."""
        self.started_at = time.monotonic()
        self.silence_timer, self.reason, self.killed = SilenceTimer(self._silent_kill_s), "", False
        try:
            self.process = self._spawn()
        except (OSError, subprocess.SubprocessError) as error:  # no memory, no more processes: that may pass
            wait_s = self._plan_restart()
            _log.error("process spawn failed", index=self.index, error=str(error), wait_s=wait_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self.argv,
                stdin=subprocess.DEVNULL,
                process_group=0,
                pass_fds=(writer,),
                env=os.environ | {VARIABLE: f"{writer}:{os.getpid()}"},
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._pipe, self._read = reader, b""
        return process

    def read_lines(self) -> list[str]:
        """The complete lines that the process has sent since the last call."""
        if self._pipe is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, _READ_BYTES):
                self._read += data
        *lines, self._read = self._read.split(b"\n")
        self._read = self._read[-REASON_MAX_BYTES:]  # bounds what a process can send without a line end
        return [line.decode("utf-8", "backslashreplace") for line in lines]

    def reap(self) -> int | None:
        """The exit code, once, if the process has ended since the last call; then the restart is planned."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self.exit_code = code
        self._plan_restart()
        return code

    def close_pipe(self) -> None:
        """Close the pipe, after the process has ended and its last lines were read."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _plan_restart(self) -> float:
        now, wait_s = time.monotonic(), self.backoff_s
        if now - self.started_at >= STEADY_S:
            wait_s = RESTART_FIRST_S
        self.start_at = now + wait_s
        self.backoff_s = min(wait_s * 2, RESTART_MAX_S)
        return wait_s

    def send(self, signum: int) -> None:
        """Send a signal to the process, if one runs."""
        if self.process is None:
            return
        try:
            self.process.send_signal(signum)
        except PermissionError:
            # It runs as another user by now. As its pipe is closed, it stops by itself.
            _log.error("process signal not permitted", index=self.index, pid=self.process.pid)
            self.process = None
            self.close_pipe()


def supervise(
    argv: Sequence[str],
    processes: int,
    *,
    stop_timeout_ms: int = 10_000,
    silent_kill_s: float = SILENT_KILL_S,
) -> int:
    """Keep `processes` children `python -m *argv --index i` running until SIGTERM or SIGINT.

    A child that came up and whose event loop then stands still for `silent_kill_s` is killed and started again.
    Exit codes: 0 after a clean stop, 1 where a child failed at the stop or had to be killed, 130 after a second signal.
    Raises ConfigError with the reason of one of them where all children end with 2 and none ever came up.
    """
    if not 1 <= processes <= PROCESSES_MAX:
        raise ConfigError(f"--processes must be a whole number from 1 to {PROCESSES_MAX}")
    return _Supervisor(
        [Child(index, argv, silent_kill_s) for index in range(processes)], stop_timeout_ms
    ).run()


class _Supervisor:
    def __init__(self, children: Sequence[Child], stop_timeout_ms: int) -> None:
        self.children = children
        # A child ends itself GRACE_MS after its stop timeout; only what cannot even do that is killed.
        self.kill_after_s = (stop_timeout_ms + 2 * GRACE_MS) / 1000
        self.kill_at: float | None = None
        """Set once stopping."""
        self.code = 0
        self.any_up = False
        """Whether any child ever did."""
        self.start_error: str | None = None
        """Why no child could start, for the ConfigError."""
        self.turned_at = time.monotonic()

    def run(self) -> int:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        # Signals, the end of a child among them, wake the select below.
        on_child = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        with reader, writer, StopSignals(lambda _requests: None) as signals:
            try:
                while self._check_children(signals.requests):
                    select.select([reader], [], [], self._wait_s())
                    with contextlib.suppress(BlockingIOError):
                        reader.recv(4096)
            finally:
                signal.set_wakeup_fd(wakeup)
                signal.signal(signal.SIGCHLD, on_child)
                for child in self.children:  # all have ended, unless we failed ourselves
                    child.send(signal.SIGKILL)
        if signals.requests > 1:
            return EXIT_KILLED
        if self.start_error is not None:
            raise ConfigError(self.start_error)
        return self.code

    def _check_children(self, requests: int) -> bool:
        """Read, restart, stop and kill children as needed; False once all have ended."""
        now = time.monotonic()
        for child in self.children:
            # First its end, then its lines: so its last lines have been read when the end is handled.
            code = child.reap()
            self._read_lines(child)
            if code is not None:
                child.close_pipe()
                self._on_end(child, code)
        if self.kill_at is None and not requests:
            self._check_health(now)
        if self.kill_at is None:
            if requests:
                self._stop(now)
            else:
                for child in self.children:
                    if child.process is None and child.start_at <= now:
                        self._start(child)
                return True
        running = [child for child in self.children if child.process is not None]
        if requests > 1 or (self.kill_at is not None and now >= self.kill_at):
            self._kill(running, now)
        return bool(running)

    def _read_lines(self, child: Child) -> None:
        for line in child.read_lines():
            if child.silence_timer.heard():
                _log.info("process responsive again", index=child.index)
            if line == UP:
                child.silence_timer.up = True
                self._on_up()
            elif line.startswith(FAILED):
                child.reason = line.removeprefix(FAILED)

    def _on_up(self) -> None:
        if not self.any_up:
            self.any_up = True
            for child in self.children:  # those that failed their first start have waited for this
                child.start_at = min(child.start_at, time.monotonic() + child.backoff_s)

    def _on_end(self, child: Child, code: int) -> None:
        if self.kill_at is not None:
            # SIGTERM may have reached it before it had set up anything: nothing was under way.
            if code not in (0, -signal.SIGTERM):
                self.code = self.code or EXIT_PROBLEM
        elif code == EXIT_USAGE:
            starting = (other.process is not None and other.exit_code is None for other in self.children)
            if not self.any_up and any(starting):
                child.start_at = time.monotonic() + SIBLINGS_WAIT_S
        else:
            wait_s = round(child.start_at - time.monotonic(), 1)
            _log.error(
                "process died", index=child.index, exit_code=code, wait_s=wait_s, **_reason_field(child)
            )

    def _check_health(self, now: float) -> None:
        """Stop if the configuration is wrong; warn of or kill each child whose event loop does not turn."""
        if not self.any_up and all(child.exit_code == EXIT_USAGE for child in self.children):
            reasons = (child.reason for child in self.children if child.reason)
            self.start_error = next(reasons, "every process has ended with exit code 2")
            self._stop(now)
        turn_s, self.turned_at = now - self.turned_at, now
        for child in self.children:
            if child.process is None or child.killed:
                continue
            match child.silence_timer.elapse(turn_s):
                case "warn":
                    _log.warning("process unresponsive", index=child.index, pid=child.process.pid)
                case "kill":
                    _log.error(
                        "process killed for blocked event loop",
                        index=child.index,
                        pid=child.process.pid,
                        silent_s=round(child.silence_timer.seconds),
                    )
                    child.killed = True
                    child.send(signal.SIGKILL)

    def _start(self, child: Child) -> None:
        if child.exit_code == EXIT_USAGE:
            # Logged at the next try only: had all failed, this would be the supervisor's last line instead.
            _log.error("process failed to start", index=child.index, **_reason_field(child))
        child.start()

    def _stop(self, now: float) -> None:
        self.kill_at = now + self.kill_after_s
        for child in self.children:
            child.send(signal.SIGTERM)

    def _kill(self, running: Sequence[Child], now: float) -> None:
        self.kill_at = now + self.kill_after_s
        for child in running:
            _log.error("process killed at stop timeout", index=child.index)
            child.send(signal.SIGKILL)

    def _wait_s(self) -> float:
        """How long to wait for a signal before the next check."""
        if self.kill_at is not None:
            return max(0.0, self.kill_at - time.monotonic())
        starts = [child.start_at for child in self.children if child.process is None]
        return max(0.0, min([CHECK_INTERVAL_S, *(start - time.monotonic() for start in starts)]))


def _reason_field(child: Child) -> dict[str, str]:
    return {"reason": child.reason} if child.reason else {}
