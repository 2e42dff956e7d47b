"""One process: its event loop, its stop, and how a command ends.

SIGTERM and SIGINT ask `main` to stop; a second one ends the process at once with 130. What hangs at the stop (a
blocked loop, a thread that never returns) is ended by a deadline, not by the patience of an operator. Several processes
are `runtime.process.supervisor`'s.
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
from maskline.runtime.process.signals import Signals
from maskline.runtime.process.stop_deadline import THREADS_GRACE_S, arm_deadline, disarm_deadline, exit_later
from maskline.schemas.errors import ConfigError, MasklineError

EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_KILLED: Final = 130
"""What shells give a command that Ctrl-C ended."""
GRACE_MS: Final = 5000
"""On top of the stop timeout, for the closing of connections after the work has stopped."""
HEARTBEAT_INTERVAL_S: Final = 0.5
"""Between two looks at whether the signals are still ours, and two beats for the supervisor. Also bounds how late a
signal is seen on an idle loop that was deprived of its wake-up descriptor."""


_log = get_logger("maskline.process")


def run(main: Callable[[asyncio.Event], Awaitable[int]], *, stop_timeout_ms: int | None = None) -> int:
    """Run `main(stop)` to its exit code, by uvloop where it exists; SIGTERM and SIGINT set `stop`.

    While `main` itself is called, before the loop turns, nothing is under way yet: a signal then ends the process with
    0. With `stop_timeout_ms`, a process that is still there so long (and GRACE_MS) after the signal shows on stderr
    where it hangs, and exits with 1.
    """
    loop: asyncio.AbstractEventLoop | None = None
    stop = asyncio.Event()

    def on_signal(asked: int) -> None:
        if asked > 1:
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
    with Signals(on_signal) as signals:
        work = _code_of(main(stop))
        runner = asyncio.Runner(loop_factory=loop_factory(signals.look))
        try:
            loop = runner.get_loop()
            heartbeat = _Heartbeat(loop, signals)
            code = _run_to_its_end(loop, work, signals)
            heartbeat.cancel()
        finally:
            # Closing the loop joins the threads of its executor, and ends what tasks are left; one that hangs must keep
            # neither the process nor its exit code.
            disarm_deadline()
            if stop_timeout_ms is not None:
                arm_deadline(2 * THREADS_GRACE_S)  # where nothing can run that would exit by itself
            cancel = exit_later(code)
            try:
                runner.close()
            except RuntimeError as error:  # it starts a thread to join the others, and none may be had
                _log.warning("event loop not closed cleanly", error=str(error))
            cancel()
            disarm_deadline()
    return code


async def _code_of(main: Awaitable[int]) -> int:
    return await main


def _run_to_its_end(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, int], signals: Signals) -> int:
    """Run the loop until the work has returned, also where a signal handler, or a task, of others' ends it first."""
    task = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not signals.asked:
                raise
            return 0
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            # RuntimeError: loop.stop() was called.
            if task.done() or loop.is_closed():
                raise
            if signals.asked:
                _log.warning("event loop interrupted during stop", error=repr(error))
            else:
                # A handler module's doing. The process would go down in order, and the next one do the same for ever.
                _log.error("event loop interrupted", error=repr(error))


class _Heartbeat:
    """What the event loop does for the process every HEARTBEAT_INTERVAL_S."""

    def __init__(self, loop: asyncio.AbstractEventLoop, signals: Signals) -> None:
        self._loop = loop
        self._signals = signals
        self._timer = loop.call_soon(self._turn)

    def cancel(self) -> None:
        self._timer.cancel()

    def _turn(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._turn)
        supervisor_pipe.report_beat()
        self._signals.look()


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command with the process's arguments and exit as the contract says."""
    supervisor_pipe.attach()
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
    exit_later(code)
    sys.exit(code)


def _complain(error: MasklineError) -> None:
    text = " ".join(str(error).split())
    if not supervisor_pipe.report_failure(text):
        write_to_stderr(f"maskline: {text}")
