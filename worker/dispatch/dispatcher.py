"""Hands released events to handlers: one event of a session at a time, many sessions at once.

A bounded set of runner tasks takes sessions from one queue. A runner works through a session's events with plain
awaits, so that a handler which never waits costs no task, no timer and no turn of the event loop; when one does wait,
another runner goes on with the rest. One sweep over the attempts under way enforces the time limits.

A failed attempt is tried again after its backoff; meanwhile its session waits, and the runner does not. What waits
longer goes into a retry queue in Redis. A retry queue that is due comes back (`worker.retry_queues.runner`) as a
`RetryQueue`, and is run like a session.

| file | does |
| --- | --- |
| `dispatcher` | chooses sessions, starts and ends the tasks that run them |
| `event_runner` | runs the handlers of one event |
| `failed_attempts`, `internal_errors` | decide what follows a failure of a handler, or of maskline |
| `finisher` | finishes events, and sets aside what a partition that is given back has begun |
| `time_limits` | keeps the attempts under way, and their time limits |
| `plain_handlers`, `thread_shares`, `threads` | queue plain `def` handlers, share the threads out, run them |
| `quarantine` | runs events that may have crashed a worker |
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.tasks import BackgroundTasks
from maskline.worker.api.binding import Table
from maskline.worker.api.retry_schedule import INLINE_WINDOW_MS
from maskline.worker.counters import Counters
from maskline.worker.dispatch import internal_errors
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.event_runner import UNTIL_RESUMED, UNTIL_SOLO, UNTIL_THREAD, EventRunner
from maskline.worker.dispatch.failed_attempts import FailedAttempts, RetryTiming
from maskline.worker.dispatch.finisher import EventFinisher
from maskline.worker.dispatch.internal_errors import InternalErrors
from maskline.worker.dispatch.plain_handlers import PlainHandlers, ThreadSlot
from maskline.worker.dispatch.quarantine import Quarantine, SoloQueue
from maskline.worker.dispatch.thread_shares import ThreadUse
from maskline.worker.dispatch.time_limits import CANCEL_GRACE_S, TIME_LIMIT, Attempt, RunningAttempts
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession

EVENTS_PER_TURN_MAX: Final = 64
"""Events a runner handles before it lets the event loop do other work, replies and commits foremost."""

WAKE_MAX: Final = 4
"""Runners woken at a time. Few: if handlers do not wait, the first runner does all the work."""

DISPATCHER: Final = "dispatcher"
"""The dispatcher's name among the background tasks, where its internal errors are counted."""

_log = get_logger("maskline.worker")


class Dispatcher:
    """Runs the handlers of one worker process.

    `table`: the handlers of each type of event. `concurrency`: sessions with an async handler under way at a time, and
    attempts of plain handlers as many again. `late_dead`: late events go to the dead letters. `on_progress(partition)`:
    called when the first event since the partition's last commit is done, so that the next commit is sent.
    `gates`: which handlers may run. `timing`: when failed attempts are tried again. `quarantine`: runs suspects; needed
    if partitions have any. `background`: counts internal errors. `context`: every attempt begins with a copy of it; the
    current one by default.
    """

    def __init__(
        self,
        table: Table,
        *,
        concurrency: int,
        late_dead: bool,
        counters: Counters,
        on_progress: Callable[[Partition], None],
        gates: HandlerGates,
        quarantine: Quarantine | None = None,
        timing: RetryTiming | None = None,
        background: BackgroundTasks | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._background = background or BackgroundTasks()
        self._context = contextvars.copy_context()
        """Of what follows an attempt: its own is the handler's."""
        self._clean = CleanContext(context or self._context)
        self._concurrency = concurrency
        self._on_progress = on_progress
        self._ready: deque[LiveSession] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._runners: set[asyncio.Task[None]] = set()
        self._other_tasks: set[asyncio.Task[None]] = set()
        """Tasks other than runners: those of plain handlers, the one that runs a suspect solo, and abandoned ones."""
        self._wake_scheduled = False
        self._stopping = False
        self._solo_queue = SoloQueue(self._start_solo)
        self._attempts = RunningAttempts(self._abandon, self._background)
        self._internal_errors = InternalErrors()
        plain = [handler.name for handlers in table.values() for handler in handlers if handler.in_thread]
        self._plain = PlainHandlers(plain, concurrency, self._start_plain)
        timing = timing or RetryTiming()
        self._failed_attempts = FailedAttempts(table, counters, gates, timing)
        self.finisher = EventFinisher(
            gates,
            self._failed_attempts,
            self._internal_errors,
            on_progress=on_progress,
            wall_ms=timing.wall_ms,
        )
        self._finish = self.finisher.finish
        self._events = EventRunner(
            table,
            counters,
            self._failed_attempts,
            gates,
            self._plain,
            self._solo_queue,
            quarantine=quarantine,
            clean=self._clean,
            late_dead=late_dead,
        )
        self._run_event = self._events.run

    # What the worker calls

    def submit(self, sessions: list[LiveSession]) -> None:
        """Run the events waiting in these sessions, whose `scheduled` is set."""
        if sessions:
            self._ready.extend(sessions)
            self._schedule_wake()

    def resume(self, partition: Partition) -> None:
        """Submit the sessions that were set aside while the partition's lease was in doubt."""
        for session in [*partition.sessions_with_work(), *partition.retry_queues.values()]:
            if not session.scheduled:
                session.scheduled = True
                self._ready.append(session)
        self._schedule_wake()

    @property
    def busy(self) -> int:
        """Sessions with a handler under way."""
        return len(self._attempts)

    @property
    def waiting(self) -> int:
        """Sessions that wait for a runner."""
        return len(self._ready)

    def threads(self) -> Mapping[str, ThreadUse]:
        """The threads of the plain handlers, by the handlers' names."""
        return self._plain.uses()

    def handler_on_loop(self) -> str:
        """The name of the handler that runs on the event loop now; empty if none does. Any thread may call this."""
        return self._attempts.handler_of(asyncio.current_task(self._loop))

    def cancel(self, partition: Partition | None, reason: str) -> None:
        """Cancel the handlers under way, of one partition or of all (None); their events are not committed."""
        self._attempts.cancel(partition, reason)
        self._plain.forget(partition)

    def forget(self, partition: Partition) -> None:
        """Drop the sessions of a partition that is not opened again: they wait for threads no longer."""
        self._plain.forget(partition)

    async def stop(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """End all tasks. Those that ignore their cancellation for `grace_s` seconds are left alone.

        Call it when nothing is under way any more, or after `cancel`.
        """
        self._stopping = True
        self._events.stop()
        self._plain.stop()
        await self._attempts.stop([*self._runners, *self._other_tasks], grace_s)

    # Runners

    def _schedule_wake(self) -> None:
        if not self._wake_scheduled and not self._stopping:
            self._wake_scheduled = True
            self._loop.call_soon(self._wake_runners, context=self._context)

    def _wake_runners(self) -> None:
        """Wake runners for the sessions that are ready. It is a callback of its own, so the current runner waits."""
        self._wake_scheduled = False
        if self._stopping:
            return
        wanted = min(len(self._ready), WAKE_MAX)
        while wanted and self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                wanted -= 1
        while wanted and len(self._runners) < self._concurrency:
            context = self._clean.copy()
            runner = self._loop.create_task(self._run(context), context=context)
            self._runners.add(runner)
            runner.add_done_callback(self._task_ended, context=self._context)
            wanted -= 1

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._runners.discard(task)
        self._other_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._background.failed(DISPATCHER, error)
        self._schedule_wake()

    async def _run(self, context: contextvars.Context) -> None:
        attempt, ready = self._new_attempt(context), self._ready
        while True:
            while ready:
                await self._handle_sessions(ready, attempt)
                if self._stopping or attempt.tainted():
                    # Unless this is a stop, the loop is closing, or a handler has cancelled the task it ran in or
                    # changed its context. Another runner is started if one is needed.
                    return
                if ready:
                    await asyncio.sleep(0)
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def _new_attempt(self, context: contextvars.Context) -> Attempt:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  we are in it
        return Attempt(task, context if self._clean.reusable else None)

    async def _handle_sessions(self, ready: deque[LiveSession], attempt: Attempt, events: int = 0) -> None:
        """Handle the events of these sessions, EVENTS_PER_TURN_MAX less `events` of them at most.

        One coroutine for all: one for each session would be a tenth of what an event costs here.
        """
        self._attempts.add(attempt)
        tainted = False
        try:
            while ready and events < EVENTS_PER_TURN_MAX and not (self._stopping or tainted):
                attempt.session = session = ready.popleft()
                attempt.now = lease_clock()
                if ready:
                    self._schedule_wake()
                partition = session.partition
                partition.running += 1
                while session.queue and attempt.now < partition.lease_until and not partition.closed:
                    retry_ms = await self._run_event(session, session.queue[0], attempt)
                    tainted = attempt.tainted()
                    if attempt.cancel_reason:
                        attempt.cancel_reason = ""
                        session.scheduled = False
                        break
                    events += 1
                    if retry_ms is not None:
                        self._postpone(session, retry_ms)
                        break
                    self._finish(session)
                    if (tainted or events >= EVENTS_PER_TURN_MAX) and session.queue:
                        self.submit([session])
                        break
                else:
                    # Nothing is left, or the lease is in doubt: `resume` submits the session if it is still held.
                    session.scheduled = False
                partition.running -= 1
                attempt.session = None
        except BaseException as error:
            if not self._recover(attempt, error):
                raise
        finally:
            if not attempt.abandoned:
                self._attempts.discard(attempt)
                if attempt.session is not None:
                    attempt.session.partition.running -= 1
                    attempt.session = None

    # What follows

    def _postpone(self, session: LiveSession, retry_ms: float) -> None:
        if retry_ms == UNTIL_RESUMED:
            session.scheduled = False
        elif retry_ms != UNTIL_SOLO:
            timer, progress = None, session.progress
            if retry_ms != UNTIL_THREAD:
                timer = self._loop.call_later(retry_ms / 1000, self._resubmit, session, context=self._context)
            elif progress is not None and progress.only is None:
                timer = self._loop.call_later(
                    INLINE_WINDOW_MS / 1000, self._waited_for_thread, session, context=self._context
                )
            if progress is not None and progress.thread_requests:
                self._plain.session_waits(progress, timer)
            if session.partition.wants_commit:  # another handler's dead letter
                self._on_progress(session.partition)

    def _resubmit(self, session: LiveSession) -> None:
        """Submit a session whose wait is over."""
        if session.progress is not None:
            session.progress.stop_waiting()
        if session.partition.closed:
            session.scheduled = False  # `resume` submits it if the partition is opened again
        else:
            self.submit([session])

    def _waited_for_thread(self, session: LiveSession) -> None:
        """Set the session's first event aside for the handlers that have waited long enough for a thread."""
        if session.progress is not None and session.partition.suspects is None:
            session.progress.stop_waiting()
            if session.partition.closed:
                session.scheduled = False
                return
            self._failed_attempts.set_aside_rest(session)
            self._finish(session)
            if session.queue:
                self.submit([session])
            else:
                session.scheduled = False

    def _recover(self, attempt: Attempt, error: BaseException) -> bool:
        """Handle an error in `_handle_sessions` itself. Returns whether its task may go on."""
        if isinstance(error, asyncio.CancelledError):
            return False
        session = attempt.session
        if session is not None and not attempt.abandoned and not self._loop.is_closed():
            self._internal_error(attempt, session, error)
        return isinstance(error, Exception)

    def _internal_error(self, attempt: Attempt, session: LiveSession, error: BaseException) -> None:
        """Run the session's first event again after RETRY_DELAY_MS, or give it up."""
        attempt.deadline, attempt.cancel_reason = 0.0, ""
        if isinstance(error, Exception):  # any other ends its runner, which is counted there
            self._background.failed(DISPATCHER, error)
        if not session.queue:
            session.scheduled = False
            return
        exhausted = self._internal_errors.exhausted(session)
        delay_s = internal_errors.RETRY_DELAY_MS / 1000
        self._loop.call_later(delay_s, self._resubmit, session, context=self._context)
        if exhausted:
            internal_errors.give_up(session, error)
            self._finish(session)

    def _abandon(self, attempt: Attempt) -> None:
        """Go on without an attempt whose handler ignores that it was cancelled."""
        session, handler = attempt.session, attempt.handler
        assert session is not None  # noqa: S101  it is under way
        assert handler is not None  # noqa: S101
        session.partition.running -= 1
        self._solo_queue.leave(attempt)
        if attempt.slot is not None:
            self._plain.finished(attempt.slot)
        self._runners.discard(attempt.task)
        self._other_tasks.add(attempt.task)
        _log.error("handler ignores cancellation", handler=handler.name, session_uuid=session.uuid)
        if attempt.cancel_reason != TIME_LIMIT:
            session.scheduled = False
            return
        try:
            if session.queue:
                self._failed_attempts.add_abandoned(session, handler, attempt.number)
        finally:
            self.submit([session])

    # Tasks other than runners: each runs one event, then the next session has its turn

    def _start_plain(self, session: LiveSession, slot: ThreadSlot) -> None:
        context = self._clean.copy()
        self._add_task(self._loop.create_task(self._run_plain(session, slot, context), context=context))

    async def _run_plain(self, session: LiveSession, slot: ThreadSlot, context: contextvars.Context) -> None:
        attempt = self._new_attempt(context)
        following: tuple[LiveSession, ThreadSlot] | None = session, slot
        try:
            while following is not None:
                session, attempt.slot = following
                await self._handle_sessions(deque((session,)), attempt, EVENTS_PER_TURN_MAX - 1)
                following = None if attempt.tainted() else self._plain.finished_take_next(attempt.slot)
        finally:
            if attempt.slot is not None:
                self._plain.finished(attempt.slot)

    def _start_solo(self, session: LiveSession) -> None:
        if not self._stopping:
            context = self._clean.copy()
            self._add_task(self._loop.create_task(self._run_solo(session, context), context=context))

    async def _run_solo(self, session: LiveSession, context: contextvars.Context) -> None:
        attempt = self._new_attempt(context)
        attempt.solo = True
        try:
            await self._handle_sessions(deque((session,)), attempt, EVENTS_PER_TURN_MAX - 1)
        finally:
            self._solo_queue.leave(attempt)

    def _add_task(self, task: asyncio.Task[None]) -> None:
        self._other_tasks.add(task)
        task.add_done_callback(self._task_ended, context=self._context)
