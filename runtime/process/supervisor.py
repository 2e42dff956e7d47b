"""Several processes of one command: started, watched, started again, stopped together.

- Children run in process groups of their own, so that Ctrl-C on a terminal reaches them once and from here. They end
  with their supervisor, even when it is killed.
- A child that ends is started again after a backoff, whatever its status, and takes no sibling with it. Only where all
  have refused to start (exit code 2) and none ever came up is the configuration to blame: that ends the supervisor
  with 2 and one line.
- A child whose event loop stands still is reported, then killed and started again. Silence is counted by the
  supervisor's own turns, so that time in which it was stopped itself, or starved, is not held against a child.
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
from maskline.runtime.process.signals import Signals
from maskline.runtime.process.supervisor_pipe import FAILED, REASON_MAX_BYTES, UP, VARIABLE
from maskline.schemas.errors import ConfigError

PROCESSES_MAX: Final = 256
"""More than any machine has use for: a slip of the finger must not start thousands."""
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STEADY_S: Final = 30.0
"""A child that ran this long was well: its next restart waits RESTART_FIRST_S again."""
VERDICT_WAIT_S: Final = 10.0
"""How long a child that refused its first start waits for what its siblings say: if all refuse, one line is enough."""
CHECK_INTERVAL_S: Final = 1.0
"""Between two looks at the children's pipes."""
TURN_MAX_S: Final = 2.0
"""What one turn of the supervisor can add to a child's silence, however long it took."""
SILENT_WARN_S: Final = 10.0
"""Or half of what kills it, if that is less."""
SILENT_KILL_S: Final = 30.0
"""A handler may block the loop for a while, of which its own worker warns; a worker whose loop stood for so long has
lost its leases several times over, and connections that the kernel gave to an ingest process wait as long."""
START_WARN_S: Final = 60.0
START_KILL_S: Final = 300.0
"""Before a child has come up: handler modules are imported then, and resources opened, some of which load much."""

_READ_BYTES: Final = 65_536

_log = get_logger("maskline.process")


class Silence:
    """How long a child has not been heard, and what is to be done about it. Pure."""

    def __init__(self, kill_s: float) -> None:
        self._kill_s = kill_s
        self._warned = False
        self.seconds = 0.0
        self.up = False

    def heard(self) -> bool:
        """Whether that ends a silence which was warned of."""
        self.seconds = 0.0
        warned, self._warned = self._warned, False
        return warned

    def passed(self, turn_s: float) -> Literal["", "warn", "kill"]:
        """The supervisor has turned once, in `turn_s`."""
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
    """One place among the supervised: its present process, or when to start the next."""

    def __init__(self, index: int, argv: Sequence[str], silent_kill_s: float = SILENT_KILL_S) -> None:
        self.index = index
        # -P: nothing that lies in the working directory may take the place of a module of ours.
        self.argv = [sys.executable, "-P", "-m", *argv, "--index", str(index)]
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.started_at = 0.0
        self.backoff_s = RESTART_FIRST_S
        self.exit_code: int | None = None
        """Of the process that ended last."""
        self.reason = ""
        """Why the present one, or the last, could not start, in its own words."""
        self.killed = False
        self.silence = Silence(silent_kill_s)
        self._silent_kill_s = silent_kill_s
        self._pipe: int | None = None
        self._read = b""

    def start(self) -> None:
        self.started_at = time.monotonic()
        self.silence, self.reason, self.killed = Silence(self._silent_kill_s), "", False
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

    def listen(self) -> list[str]:
        """The lines that the process has sent since the last look."""
        if self._pipe is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, _READ_BYTES):
                self._read += data
        *lines, self._read = self._read.split(b"\n")
        self._read = self._read[-REASON_MAX_BYTES:]  # a process that sends no line ends is none of ours
        return [line.decode("utf-8", "backslashreplace") for line in lines]

    def reap(self) -> int | None:
        """The exit code, once, if the process has ended since the last look; then the restart is planned."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self.exit_code = code
        self._plan_restart()
        return code

    def forget_pipe(self) -> None:
        """After the process has ended, and its last lines were read."""
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
        if self.process is None:
            return
        try:
            self.process.send_signal(signum)
        except PermissionError:
            # It runs as another user by now. Its pipe to us closed, it stops by itself.
            _log.error("process signal not permitted", index=self.index, pid=self.process.pid)
            self.process = None
            self.forget_pipe()


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
        self.came_up = False
        """Whether any child ever did."""
        self.refusal: str | None = None
        """Why none could."""
        self.turned_at = time.monotonic()

    def run(self) -> int:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        # Signals, the end of a child among them, wake the select below.
        on_child = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        with reader, writer, Signals(lambda _asked: None) as signals:
            try:
                while self._turn(signals.asked):
                    select.select([reader], [], [], self._wait_s())
                    with contextlib.suppress(BlockingIOError):
                        reader.recv(4096)
            finally:
                signal.set_wakeup_fd(wakeup)
                signal.signal(signal.SIGCHLD, on_child)
                for child in self.children:  # all have ended, unless we failed ourselves
                    child.send(signal.SIGKILL)
        if signals.asked > 1:
            return EXIT_KILLED
        if self.refusal is not None:
            raise ConfigError(self.refusal)
        return self.code

    def _turn(self, asked: int) -> bool:
        """Look at everything once; False when all is over."""
        now = time.monotonic()
        for child in self.children:
            # First its end, then its lines: what it has said before its end has been read when that is judged.
            code = child.reap()
            self._listen(child)
            if code is not None:
                child.forget_pipe()
                self._ended(child, code)
        if self.kill_at is None and not asked:
            self._judge(now)
        if self.kill_at is None:
            if asked:
                self._stop(now)
            else:
                for child in self.children:
                    if child.process is None and child.start_at <= now:
                        self._start(child)
                return True
        running = [child for child in self.children if child.process is not None]
        if asked > 1 or (self.kill_at is not None and now >= self.kill_at):
            self._kill(running, now)
        return bool(running)

    def _listen(self, child: Child) -> None:
        for line in child.listen():
            if child.silence.heard():
                _log.info("process responsive again", index=child.index)
            if line == UP:
                child.silence.up = True
                self._first_came_up()
            elif line.startswith(FAILED):
                child.reason = line.removeprefix(FAILED)

    def _first_came_up(self) -> None:
        if not self.came_up:
            self.came_up = True
            for child in self.children:  # those that refused have waited for this
                child.start_at = min(child.start_at, time.monotonic() + child.backoff_s)

    def _ended(self, child: Child, code: int) -> None:
        if self.kill_at is not None:
            # SIGTERM may have reached it before it had set up anything: nothing was under way.
            if code not in (0, -signal.SIGTERM):
                self.code = self.code or EXIT_PROBLEM
        elif code == EXIT_USAGE:
            starting = (other.process is not None and other.exit_code is None for other in self.children)
            if not self.came_up and any(starting):
                child.start_at = time.monotonic() + VERDICT_WAIT_S
        else:
            _log.error(
                "process died", index=child.index, exit_code=code,
                wait_s=round(child.start_at - time.monotonic(), 1), **_reason(child),
            )  # fmt: skip

    def _judge(self, now: float) -> None:
        """Is the configuration to blame, and does every child's event loop turn?"""
        if not self.came_up and all(child.exit_code == EXIT_USAGE for child in self.children):
            reasons = (child.reason for child in self.children if child.reason)
            self.refusal = next(reasons, "every process has ended with exit code 2")
            self._stop(now)
        turn_s, self.turned_at = now - self.turned_at, now
        for child in self.children:
            if child.process is None or child.killed:
                continue
            match child.silence.passed(turn_s):
                case "warn":
                    _log.warning("process unresponsive", index=child.index, pid=child.process.pid)
                case "kill":
                    _log.error(
                        "process killed for blocked event loop", index=child.index,
                        pid=child.process.pid, silent_s=round(child.silence.seconds),
                    )  # fmt: skip
                    child.killed = True
                    child.send(signal.SIGKILL)

    def _start(self, child: Child) -> None:
        if child.exit_code == EXIT_USAGE:
            # Said when it is tried again: had all refused, this would be the supervisor's last line instead.
            _log.error("process failed to start", index=child.index, **_reason(child))
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
        """How long nothing has to be done unless a signal comes."""
        if self.kill_at is not None:
            return max(0.0, self.kill_at - time.monotonic())
        starts = [child.start_at for child in self.children if child.process is None]
        return max(0.0, min([CHECK_INTERVAL_S, *(start - time.monotonic() for start in starts)]))


def _reason(child: Child) -> dict[str, str]:
    return {"reason": child.reason} if child.reason else {}
