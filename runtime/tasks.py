"""Runs the background work of a node, beside its requests and handlers, so that none of it ends in silence.

Work that raises is logged with its name, counted, and started again after a backoff, as often as it takes. Health and
metrics read `failing` and `failures`. Work whose failure must end the process is no background task: its owner awaits
it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final

from maskline.runtime.logs import get_logger

RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 5.0
"""Bounds how late work resumes once its fault is mended, and how often a lasting fault repeats."""
STEADY_S: Final = 10.0
"""Work that ran this long was healthy: its next restart waits RESTART_FIRST_S again, and health forgets the failure."""
LOG_INTERVAL_S: Final = 10.0
"""Between two log lines about the same kind of failure of the same work; each has the count."""

_log = get_logger("maskline.tasks")


class BackgroundTasks:
    """The background tasks of one node, by name. Belongs to the event loop that it is made in."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        """How often each task has failed, by its name."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: dict[str, tuple[str, float]] = {}
        self._logged: dict[tuple[str, str], float] = {}

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run `work()` until it returns or its task is cancelled; start it again after a backoff whenever it raises.

        The task ends with the work, and never fails.
        """
        task = self._loop.create_task(self._run(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def every(self, name: str, interval_s: float, call: Callable[[], None]) -> "Repeating":
        """Call `call` on the loop every `interval_s` until cancelled, also after it has raised."""
        return Repeating(self, name, interval_s, call)

    async def stop(self) -> None:
        """Cancel the tasks that still run, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def failing(self) -> dict[str, str]:
        """By name: the type of the last error, for what has failed within STEADY_S. For /readyz."""
        recent = monotonic() - STEADY_S
        return {name: kind for name, (kind, failed_at) in self._failing.items() if failed_at > recent}

    def failed(self, name: str, error: BaseException) -> None:
        """Count and log a failure; for work that is started again by other means than `start` and `every`."""
        now, kind = monotonic(), type(error).__name__
        self.failures[name] += 1
        self._failing[name] = kind, now
        if now >= self._logged.get((name, kind), 0.0):
            self._logged[name, kind] = now + LOG_INTERVAL_S
            failures = self.failures[name]
            try:
                _log.error("background task failed", task=name, failures=failures, exc_info=error)
            except Exception:  # noqa: BLE001 - out of descriptors a traceback cannot be shown; the work goes on
                with contextlib.suppress(Exception):
                    _log.error("background task failed", task=name, failures=failures, error=kind)

    async def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        backoff_s = RESTART_FIRST_S
        while True:
            started = monotonic()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - after any error the work must go on
                self.failed(name, error)
            else:
                return
            if monotonic() - started >= STEADY_S:
                backoff_s = RESTART_FIRST_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, RESTART_MAX_S)


class Repeating:
    """A call repeated on the event loop every `interval_s`, made by `BackgroundTasks.every`."""

    def __init__(
        self, tasks: BackgroundTasks, name: str, interval_s: float, call: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._name = name
        self._interval_s = interval_s
        self._call = call
        self._timer = self._loop.call_later(interval_s, self._call_once)

    def cancel(self) -> None:
        """Make no further call."""
        self._timer.cancel()

    def _call_once(self) -> None:
        # First the next turn: `call` may cancel it, and must not prevent it by raising.
        self._timer = self._loop.call_later(self._interval_s, self._call_once)
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self._tasks.failed(self._name, error)
