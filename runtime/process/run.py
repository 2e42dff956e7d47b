"""Runs one process: its event loop, its stop, and how a command ends.

SIGTERM and SIGINT ask `main` to stop; a second one ends the process at once with 130. A deadline ends what hangs at the
stop (a blocked loop, a thread that never returns). `runtime.process.supervisor` runs several processes.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NoReturn

from maskline.runtime.logs import get_logger, write_to_stderr
from maskline.runtime.net.descriptors import raise_limit
from maskline.runtime.process import supervisor_pipe
from maskline.runtime.process.event_loop import loop_factory
from maskline.runtime.process.signals import StopSignals
from maskline.runtime.process.stop_deadline import THREADS_GRACE_S, arm_deadline, disarm_deadline, exit_later
from maskline.schemas.errors import ConfigError, HandlerModulesError, MasklineError

EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_KILLED: Final = 130
"""What shells give a command that Ctrl-C ended."""
GRACE_MS: Final = 5000
"""Added to the stop timeout, for closing connections after the work has stopped."""
HEARTBEAT_INTERVAL_S: Final = 0.5
"""How often the loop restores the signal handlers and sends a beat to the supervisor. Also bounds how late a signal is
seen on an idle loop whose wake-up descriptor another library has taken."""


_log = get_logger("maskline.process")


def run(main: Callable[[asyncio.Event], Awaitable[int]], *, stop_timeout_ms: int | None = None) -> int:
    """Run `main(stop)` on an event loop (uvloop's where it exists) to its exit code; SIGTERM and SIGINT set `stop`.

    A signal that comes while `main` is called, before the loop turns, ends the process with 0: nothing is under way
    yet. With `stop_timeout_ms`, a process that has not ended so long (and GRACE_MS) after the signal writes its stacks
    to stderr and exits with 1.
    """
    loop: asyncio.AbstractEventLoop | None = None
    stop = asyncio.Event()

    def on_signal(requests: int) -> None:
        if requests > 1:
            os._exit(EXIT_KILLED)
        if loop is None:
            os._exit(0)
        with contextlib.suppress(RuntimeError):  # closed: there is nothing left to stop
            loop.call_soon_threadsafe(stop.set)
        if stop_timeout_ms is not None:
            arm_deadline((stop_timeout_ms + GRACE_MS) / 1000)

    raise_limit()
    # Python's own handlers, not the loop's: the second signal must end a process whose loop is blocked.
    code = EXIT_PROBLEM
    with StopSignals(on_signal) as signals:
        work = _await_code(main(stop))
        runner = asyncio.Runner(loop_factory=loop_factory(signals.restore))
        try:
            loop = runner.get_loop()
            heartbeat = _Heartbeat(loop, signals)
            code = _run_to_end(loop, work, signals)
            heartbeat.cancel()
        finally:
            # Closing the loop joins the threads of its executor and ends the remaining tasks; one that hangs must keep
            # the process neither alive nor from its exit code.
            disarm_deadline()
            if stop_timeout_ms is not None:
                arm_deadline(2 * THREADS_GRACE_S)  # for the case that not even the exit below can run
            cancel = exit_later(code)
            try:
                runner.close()
            except RuntimeError as error:  # it starts a thread to join the others, and none may be had
                _log.warning("event loop not closed cleanly", error=str(error))
            cancel()
            disarm_deadline()
    return code


async def _await_code(main: Awaitable[int]) -> int:
    return await main


def _run_to_end(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, int], signals: StopSignals) -> int:
    """Run the loop until the work has returned, even if a signal handler or task of other code stops it before."""
    task = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not signals.requests:
                raise
            return 0
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            # RuntimeError: loop.stop() was called.
            if task.done() or loop.is_closed():
                raise
            if signals.requests:
                _log.warning("event loop interrupted during stop", error=repr(error))
            else:
                # A handler module has done it. The process would stop in order, and so would its successors, for ever.
                _log.error("event loop interrupted", error=repr(error))


class _Heartbeat:
    """Every HEARTBEAT_INTERVAL_S, tells the supervisor that the loop turns, and restores the signal handlers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, signals: StopSignals) -> None:
        self._loop = loop
        self._signals = signals
        self._timer = loop.call_soon(self._beat)

    def cancel(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._beat)
        supervisor_pipe.report_beat()
        self._signals.restore()


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Call `main` with the process's arguments and exit with its code.

    An error of maskline's becomes one line on stderr, or of the supervisor: exit code 2 for a ConfigError, else 1. Each
    mistake in handler modules has a line of its own on stderr.
    """
    supervisor_pipe.attach()
    try:
        code = main(sys.argv[1:])
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except ConfigError as error:
        code = EXIT_USAGE
        _report_error(error)
    except MasklineError as error:
        code = EXIT_PROBLEM
        _report_error(error)
    except KeyboardInterrupt:
        code = EXIT_KILLED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; without this Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_PROBLEM
    exit_later(code)
    sys.exit(code)


def _report_error(error: MasklineError) -> None:
    text = " ".join(str(error).split())
    if supervisor_pipe.report_failure(text):
        return
    lines = map(str, error.mistakes) if isinstance(error, HandlerModulesError) else [text]
    for line in lines:
        write_to_stderr(f"maskline: {line}")
