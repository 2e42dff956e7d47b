"""Handing released events to handlers: one event of a session at a time, many sessions at once.

A bounded set of runner tasks takes sessions from one queue. A runner works through a session's events with plain
awaits, so that a handler which never waits costs no task, no timer and no trip through the event loop; only when one
does wait does another runner go on with the rest. Time limits are kept by one sweep over the attempts under way.

A failed attempt is tried again after its backoff; meanwhile its session waits, and the runner does not.
"""

import asyncio
import contextvars
import inspect
import random
import signal
from collections import deque
from collections.abc import Callable, Mapping
from time import time_ns
from typing import Final

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.context import Context
from maskline.worker.api.failures import (
    FailedInSandboxError,
    HandlerCrashedError,
    Verdict,
    judge,
    overtime,
    traceback_of,
    unstoppable,
)
from maskline.worker.counters import Counters
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.deadlines import CANCEL_GRACE_S, TIME_LIMIT, Attempt, Attempts
from maskline.worker.dispatch.plain_handlers import PlainHandlers, ThreadSlot
from maskline.worker.dispatch.quarantine import Quarantine, SoloQueue, SuspectEvent
from maskline.worker.dispatch.thread_shares import ThreadUse
from maskline.worker.entries.dead_letter import Cause, dead_letter_of, internal_error
from maskline.worker.ordering.reorder import Arrival, Release
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession, Progress

TURNS_MAX: Final = 64
"""Events a runner handles before it lets the event loop do other work, replies and commits foremost."""

WAKE_MAX: Final = 4
"""Runners woken at a time: few, since where handlers do not wait the first one does all the work."""

UNTIL_RESUMED: Final = -1.0
"""In place of a wait: the event is put aside until `resume`."""

DISPATCHER: Final = "dispatcher"
"""Its name among the background tasks, where its faults are counted."""

UNTIL_SOLO: Final = -2.0
"""In place of a wait: the queue of suspects with crashes starts the session in its turn."""

UNTIL_THREAD: Final = -3.0
"""In place of a wait: a thread of a plain handler is waited for."""

FAULTS_MAX: Final = 3
"""Faults of ours met on one event before it becomes a dead letter. Some pass (no memory, no thread), but an event that
always meets one must not keep its session for ever."""

FAULTS_KNOWN_MAX: Final = 1_024
"""Events whose faults are counted at a time; where there are more, nothing is well, and counting begins again."""

FAULT_DELAY_MS: Final = 250.0
"""Before an event on which we met a fault of ours is run again."""

_log = get_logger("maskline.worker")


def may_be_ctrl_c() -> bool:
    """Whether a KeyboardInterrupt may be the user's: not in a worker, where SIGINT is taken by the process."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Dispatcher:
    """Runs handlers.

    `table`: the handlers of each type of event. `on_progress(partition)`: called when an event of the partition is
    done, and none was since its last commit was taken, so that it gets committed. `late_dead`: late events go to the
    dead letters. `quarantine`: runs suspects; needed where partitions have any. `background`: where faults are counted.
    `context`: what every attempt begins with a copy of; the present one by default.
    """

    def __init__(
        self, table: Table, *, concurrency: int, late_dead: bool, counters: Counters,
        on_progress: Callable[[Partition], None], quarantine: Quarantine | None = None,
        background: BackgroundTasks | None = None, context: contextvars.Context | None = None,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._background = background or BackgroundTasks()
        self._context = contextvars.copy_context()
        """Of what follows an attempt: its own is the handler's."""
        self._clean = CleanContext(context or self._context)
        self._table = table
        self._seen = KNOWN_NUMBERS.add_event
        self._concurrency = concurrency
        self._late_dead = late_dead
        self._counters = counters
        self._on_progress = on_progress
        self._ready: deque[LiveSession] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._runners: set[asyncio.Task[None]] = set()
        self._solo_queue = SoloQueue(self._start_solo)
        self._attempts = Attempts(self._stuck, self._background)
        self._faults: dict[str, int] = {}
        """Faults of ours met on events that are not done, by entry."""
        self._pump_scheduled = False
        self._stopping = False
        plain = [handler.name for handlers in table.values() for handler in handlers if handler.in_thread]
        self._plain = PlainHandlers(plain, concurrency, self._start_plain)
        self._apart: set[asyncio.Task[None]] = set()
        """Tasks that are none of the runners: of plain handlers, one that runs a suspect alone, and those given up."""
        self._quarantine = quarantine

    # What the worker calls

    def submit(self, sessions: list[LiveSession]) -> None:
        """Run the events waiting in these sessions, whose `scheduled` is set."""
        if sessions:
            self._ready.extend(sessions)
            self._schedule_pump()

    def resume(self, partition: Partition) -> None:
        """Take up what was put aside while the partition's lease was in doubt."""
        for session in partition.sessions_with_work():
            if not session.scheduled:
                session.scheduled = True
                self._ready.append(session)
        self._schedule_pump()

    @property
    def busy(self) -> int:
        """Sessions with a handler under way."""
        return len(self._attempts)

    @property
    def waiting(self) -> int:
        return len(self._ready)

    def threads(self) -> Mapping[str, ThreadUse]:
        """How the plain handlers stand, by name."""
        return self._plain.uses()

    def handler_on_loop(self) -> str:
        """The handler that has the event loop at this moment, if one has: for a thread that finds it blocked."""
        return self._attempts.handler_of(asyncio.current_task(self._loop))

    def cancel(self, partition: Partition | None, why: str) -> None:
        """Cancel the handlers under way, of one partition or of all; what they did is not committed."""
        self._attempts.cancel(partition, why)
        self._plain.forget(partition)

    def forget(self, partition: Partition) -> None:
        """The partition is not opened again: nothing of it waits for a thread any more."""
        self._plain.forget(partition)

    async def stop(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """End the runners, but for those that ignore it for so long.

        Call it when nothing is under way any more, or after `cancel`.
        """
        self._stopping = True
        self._plain.stop()
        await self._attempts.stop([*self._runners, *self._apart], grace_s)

    # Runners

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled and not self._stopping:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        """Wake runners for what is ready. It runs as its own callback: whoever works now is waiting for something."""
        self._pump_scheduled = False
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
            runner.add_done_callback(self._ended, context=self._context)
            wanted -= 1

    def _ended(self, runner: asyncio.Task[None]) -> None:
        self._runners.discard(runner)
        self._apart.discard(runner)
        if not runner.cancelled() and (error := runner.exception()):
            self._background.failed(DISPATCHER, error)
        self._schedule_pump()

    async def _run(self, context: contextvars.Context) -> None:
        attempt, ready = self._attempt(context), self._ready
        while True:
            while ready:
                await self._work(ready, attempt)
                if self._stopping or attempt.spent():
                    # Where it is no stop, the loop is closing, or a handler has cancelled the task it ran in, or has
                    # changed its context. Another runner takes the place if one is needed.
                    return
                if ready:
                    await asyncio.sleep(0)
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def _attempt(self, context: contextvars.Context) -> Attempt:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  we are in it
        return Attempt(task, context if self._clean.reusable else None)

    async def _work(self, ready: deque[LiveSession], attempt: Attempt, turns: int = 0) -> None:
        """Handle the events of these sessions, TURNS_MAX less `turns` of them at most.

        One coroutine for all: one for each session would be a tenth of what an event costs here.
        """
        self._attempts.add(attempt)
        spent = False
        try:
            while ready and turns < TURNS_MAX and not (self._stopping or spent):
                attempt.session = session = ready.popleft()
                attempt.now = lease_clock()
                if ready:
                    self._schedule_pump()
                partition = session.partition
                partition.running += 1
                while session.queue and attempt.now < partition.lease_until and not partition.closed:
                    retry_ms = await self._handle(session, session.queue[0], attempt)
                    spent = attempt.spent()
                    if attempt.why:
                        attempt.why = ""
                        session.scheduled = False
                        break
                    turns += 1
                    if retry_ms is not None:
                        self._put_off(session, retry_ms)
                        break
                    self._done(session)
                    if (spent or turns >= TURNS_MAX) and session.queue:
                        self.submit([session])
                        break
                else:
                    # Nothing left, or not ours to start: `resume` puts it back if the lease turns out to be held.
                    session.scheduled = False
                partition.running -= 1
                attempt.session = None
        except BaseException as error:
            if not self._bear(attempt, error):
                raise
        finally:
            if not attempt.abandoned:
                self._attempts.discard(attempt)
                if attempt.session is not None:
                    attempt.session.partition.running -= 1
                    attempt.session = None

    def _bear(self, attempt: Attempt, error: BaseException) -> bool:
        """We have failed at a session's first event: run it again in a while, or give it up.

        Returns whether the runner may go on.
        """
        if isinstance(error, asyncio.CancelledError):
            return False
        session = attempt.session
        if session is not None and not attempt.abandoned and not self._loop.is_closed():
            self._fault(attempt, session, error)
        return isinstance(error, Exception)

    def _fault(self, attempt: Attempt, session: LiveSession, error: BaseException) -> None:
        attempt.deadline, attempt.why = 0.0, ""
        if isinstance(error, Exception):  # else its runner ends by it, and that is counted
            self._background.failed(DISPATCHER, error)
        if not session.queue:
            session.scheduled = False
            return
        arrival = session.queue[0].arrival
        entry_id: str = arrival.payload.entry_id
        if len(self._faults) >= FAULTS_KNOWN_MAX:
            self._faults.clear()
        faults = self._faults[entry_id] = self._faults.pop(entry_id, 0) + 1
        self._loop.call_later(FAULT_DELAY_MS / 1000, self._again, session, context=self._context)
        if faults >= FAULTS_MAX:
            del self._faults[entry_id]
            self._give_up(session, arrival, error)

    def _give_up(self, session: LiveSession, arrival: Arrival, error: BaseException) -> None:
        partition = session.partition
        cause = internal_error(error, "dispatching", attempts=FAULTS_MAX)
        letter = dead_letter_of(arrival, cause, group=partition.group, failed_at_ms=time_ns() // 1_000_000)
        _log.error(
            "dead letter", code=letter.code, reason=letter.reason, handler=None, attempts=FAULTS_MAX,
            session_uuid=session.uuid, event_name=letter.event_name, sequence_number=arrival.number,
        )  # fmt: skip
        partition.add_dead_letter(letter)
        self._done(session)

    def _done(self, session: LiveSession) -> None:
        """The first event of a session's queue is handled, or given up."""
        session.progress = None
        if self._faults:
            self._faults.pop(session.queue[0].arrival.payload.entry_id, None)
        partition = session.partition
        partition.finish(session, session.queue[0])
        if not partition.commit_requested:
            partition.commit_requested = True
            self._on_progress(partition)

    def _put_off(self, session: LiveSession, retry_ms: float) -> None:
        if retry_ms == UNTIL_RESUMED:
            session.scheduled = False
        elif retry_ms != UNTIL_SOLO:
            timer, progress = None, session.progress
            if retry_ms != UNTIL_THREAD:
                timer = self._loop.call_later(retry_ms / 1000, self._again, session, context=self._context)
            if progress is not None and progress.thread_requests:
                self._plain.waiting(progress, timer)
            if session.partition.wants_commit:  # another handler's dead letter
                self._on_progress(session.partition)

    def _again(self, session: LiveSession) -> None:
        if session.progress is not None:
            session.progress.stop_waiting()
        if session.partition.closed:
            session.scheduled = False  # `resume` takes it up, should the partition be opened again
        else:
            self.submit([session])

    # One event

    async def _handle(self, session: LiveSession, release: Release, attempt: Attempt) -> float | None:
        """Run the handlers that have not handled the event yet; return in how many ms to come back, None when done."""
        partition, event = session.partition, release.arrival.payload.event
        self._seen(event)
        if session.progress is not None or partition.suspects is not None or release.order == "late":
            return await self._handle_rarely(session, release, attempt)
        # The ordinary way: async handlers that succeed at the first try, without a coroutine more than they are.
        counters, begun = self._counters, False
        for handler in self._table[event.__class__]:
            if handler.in_thread or (begun and not self._may_go_on(partition, attempt)):
                break
            begun, started = True, attempt.now
            attempt.handler, attempt.number, attempt.deadline = handler, 1, started + handler.timeout_s
            failure: BaseException | None = None
            try:
                await handler.call(event, Context(release, handler.name, 1, partition.token))
            except BaseException as error:  # noqa: BLE001  whatever a handler raises is its own affair
                failure = self._caught(error, attempt)
            attempt.deadline = 0.0
            attempt.now = now = lease_clock()
            counters.handler_seconds[handler.name] += now - started
            if attempt.why or attempt.abandoned:
                failure = self._cut_short(failure, attempt, in_thread=False)
                if attempt.why:
                    return None
            if failure is not None:
                self._failed(session, release, handler, 1, failure, None)
                return await self._go_on(session, release, attempt, None, begun=True)
            counters.handled[handler.name] += 1
        else:
            return None
        if begun:
            session.progress = self._progress_so_far(event, handler.name)
        return await self._go_on(session, release, attempt, None, begun=begun)

    async def _handle_rarely(self, session: LiveSession, release: Release, attempt: Attempt) -> float | None:
        """As `_handle`, for an event that came late, that failed before, or that may be a suspect; or UNTIL_SOLO."""
        suspect = None
        if session.partition.suspects is not None and self._quarantine is not None:
            suspect = self._quarantine.suspect_event(session)
        if suspect is not None and suspect.solo and not self._solo_queue.admit(session, attempt):
            return UNTIL_SOLO
        if self._late_dead and release.order == "late":
            verdict = Verdict(None, "late", "late: its place in the order had passed")
            self._dead_letter(session, release, verdict, None, 0, None)
            return None
        return await self._go_on(session, release, attempt, suspect, begun=False)

    def _may_go_on(self, partition: Partition, attempt: Attempt) -> bool:
        """Whether another handler of an event may start after one has ended."""
        return attempt.now < partition.lease_until and not attempt.spent()

    async def _go_on(
        self,
        session: LiveSession,
        release: Release,
        attempt: Attempt,
        suspect: SuspectEvent | None,
        *,
        begun: bool,
    ) -> float | None:
        """As `_handle`, for whatever is not ordinary. `begun`: a handler has just run."""
        event: Event = release.arrival.payload.event
        soonest: float | None = None
        elsewhere = False
        for handler in self._table[event.__class__]:
            number, progress = 1, session.progress
            if progress is not None:
                if handler.name in progress.done:
                    continue
                wait_ms = progress.wait_ms(handler.name, attempt.now)
                if wait_ms > 0:
                    soonest = wait_ms if soonest is None else min(soonest, wait_ms)
                    continue
                number += progress.attempts.get(handler.name, 0)
            if not attempt.runs(handler):
                elsewhere = True
                self._line_up(session, event, handler)
                continue
            if begun and not self._may_go_on(session.partition, attempt):
                session.progress = progress or self._progress_so_far(event, handler.name)
                return 0.0 if attempt.spent() else UNTIL_RESUMED
            begun = True
            ctx = Context(release, handler.name, number, session.partition.token)
            failure = await self._try(handler, event, ctx, attempt, suspect)
            if attempt.why:
                return None
            if failure is None:
                self._counters.handled[handler.name] += 1
                if progress is not None:
                    progress.done.add(handler.name)
                continue
            delay_ms = self._failed(session, release, handler, number, failure, suspect)
            if delay_ms is not None:
                soonest = delay_ms if soonest is None else min(soonest, delay_ms)
        if elsewhere and attempt.slot is not None:
            return 0.0  # a runner goes on with it
        return UNTIL_THREAD if elsewhere and soonest is None else soonest

    def _failed(
        self, session: LiveSession, release: Release, handler: BoundHandler, number: int, failure: BaseException,
        suspect: SuspectEvent | None,
    ) -> float | None:  # fmt: skip
        """Attempt `number` of a handler has failed: in how many ms to try again, None where it has been given up."""
        self._counters.failed[handler.name] += 1
        if session.progress is None:
            session.progress = self._progress_so_far(release.arrival.payload.event, handler.name)
        progress = session.progress
        verdict = judge(failure, handler.policy, number, jitter=random.random())  # noqa: S311  no secret
        if verdict.delay_ms is None:
            attempts = number if suspect is None else number + suspect.crashes(handler)
            self._dead_letter(session, release, verdict, handler.name, attempts, failure)
            progress.done.add(handler.name)
        else:
            progress.failed(handler.name, number, lease_clock() + verdict.delay_ms / 1000)
            Context(release, handler.name, number, session.partition.token).log.warning(
                "handler attempt failed", retry_in_ms=round(verdict.delay_ms), why=verdict.reason
            )
        return verdict.delay_ms

    async def _try(
        self,
        handler: BoundHandler,
        event: Event,
        ctx: Context,
        attempt: Attempt,
        suspect: SuspectEvent | None,
    ) -> BaseException | None:
        """Run one attempt and return what it failed with.

        `attempt.why` stays set where a stop has cancelled it.
        """
        started = lease_clock()
        attempt.handler, attempt.number = handler, ctx.attempt
        in_thread = handler.in_thread
        failure: BaseException | None = None
        try:
            if in_thread and attempt.solo:
                attempt.slot = await self._plain.slot(handler.name)
            tried = suspect is not None and await suspect.before_attempt(handler, ctx)
            if in_thread and not tried and attempt.slot is not None:
                attempt.deadline = lease_clock() + handler.timeout_s
                result = await attempt.slot.run(handler.call, event, ctx, context=self._clean.copy())
                if inspect.isawaitable(result):  # a plain function around an async one
                    attempt.slot.leave()
                    in_thread = False
                    await result
            elif not tried:
                attempt.deadline = lease_clock() + handler.timeout_s
                await handler.call(event, ctx)
        except BaseException as error:  # noqa: BLE001  as above
            failure = self._caught(error, attempt)
        finally:
            if attempt.solo and attempt.slot is not None:
                attempt.slot.leave()
        attempt.deadline = 0.0
        attempt.now = lease_clock()
        self._counters.handler_seconds[handler.name] += attempt.now - started
        if suspect is not None and not attempt.abandoned:
            suspect.after_attempt(handler)
        if attempt.why or attempt.abandoned:
            failure = self._cut_short(failure, attempt, in_thread=in_thread)
        return failure

    def _caught(self, error: BaseException, attempt: Attempt) -> BaseException:
        """What an attempt failed with. Raises it again where it is not the handler's."""
        if isinstance(error, asyncio.CancelledError):
            # Where it is not by us, something that the handler waited for was cancelled.
            if self._stopping and not attempt.why:
                raise error
        elif isinstance(error, GeneratorExit) or (isinstance(error, KeyboardInterrupt) and may_be_ctrl_c()):
            raise error
        return error

    def _cut_short(
        self, failure: BaseException | None, attempt: Attempt, *, in_thread: bool
    ) -> BaseException | None:
        """What became of an attempt that the sweep or a stop has cancelled."""
        if attempt.abandoned:
            raise asyncio.CancelledError
        attempt.task.uncancel()
        if attempt.why == TIME_LIMIT:
            attempt.why = ""
            # A handler that came to its end all the same has handled the event.
            if failure is not None and attempt.handler is not None:
                return overtime(attempt.handler, in_thread=in_thread)
        return failure

    def _progress_so_far(self, event: Event, failed: str) -> Progress:
        """The record of an event whose handler `failed` is the first to fail: those before it have succeeded."""
        progress = Progress()
        for handler in self._table[type(event)]:
            if handler.name == failed:
                break
            progress.done.add(handler.name)
        return progress

    def _dead_letter(
        self, session: LiveSession, release: Release, verdict: Verdict, handler: str | None, attempts: int,
        failure: BaseException | None,
    ) -> None:  # fmt: skip
        event = release.arrival.payload.event
        if isinstance(failure, (HandlerCrashedError, FailedInSandboxError)):
            failure.with_traceback(None)  # ours, and of no use to anybody
        cause = Cause(verdict.code, verdict.reason, handler, attempts, traceback_of(failure))
        session.partition.add_dead_letter(
            dead_letter_of(
                release.arrival, cause, group=session.partition.group, failed_at_ms=time_ns() // 1_000_000
            )
        )
        _log.error(
            "dead letter", code=verdict.code, reason=verdict.reason, handler=handler, attempts=attempts,
            session_uuid=session.uuid, event_name=event.event_name, sequence_number=release.arrival.number,
        )  # fmt: skip

    # Plain handlers

    def _line_up(self, session: LiveSession, event: Event, handler: BoundHandler) -> None:
        """The handler's attempt is due, and not for this task to run: a plain one waits for a thread."""
        if handler.in_thread:
            if session.progress is None:
                session.progress = self._progress_so_far(event, handler.name)
            self._plain.line_up(session, session.progress, handler.name)

    def _start_plain(self, session: LiveSession, slot: ThreadSlot) -> None:
        context = self._clean.copy()
        runner = self._loop.create_task(self._run_plain(session, slot, context), context=context)
        self._apart.add(runner)
        runner.add_done_callback(self._ended, context=self._context)

    async def _run_plain(self, session: LiveSession, slot: ThreadSlot, context: contextvars.Context) -> None:
        attempt = self._attempt(context)
        following: tuple[LiveSession, ThreadSlot] | None = session, slot
        try:
            while following is not None:
                session, attempt.slot = following
                # One event, then it is anybody's turn.
                await self._work(deque((session,)), attempt, TURNS_MAX - 1)
                following = None if attempt.spent() else self._plain.next(attempt.slot)
        finally:
            if attempt.slot is not None:
                self._plain.ended(attempt.slot)

    # Suspects of having brought a worker down

    def _start_solo(self, session: LiveSession) -> None:
        if not self._stopping:
            context = self._clean.copy()
            runner = self._loop.create_task(self._run_solo(session, context), context=context)
            self._apart.add(runner)
            runner.add_done_callback(self._ended, context=self._context)

    async def _run_solo(self, session: LiveSession, context: contextvars.Context) -> None:
        attempt = self._attempt(context)
        attempt.solo = True
        try:
            # One event, then it is anybody's turn.
            await self._work(deque((session,)), attempt, TURNS_MAX - 1)
        finally:
            self._solo_queue.leave(attempt)

    def _stuck(self, attempt: Attempt) -> None:
        """Go on without an attempt whose handler ignores that it was cancelled."""
        session, handler = attempt.session, attempt.handler
        assert session is not None  # noqa: S101  it is under way
        assert handler is not None  # noqa: S101
        session.partition.running -= 1
        self._solo_queue.leave(attempt)
        if attempt.slot is not None:
            self._plain.ended(attempt.slot)
        self._runners.discard(attempt.task)
        self._apart.add(attempt.task)
        _log.error("handler ignores cancellation", handler=handler.name, session_uuid=session.uuid)
        if attempt.why != TIME_LIMIT:
            session.scheduled = False
            return
        release = session.queue[0]
        if session.progress is None:
            session.progress = self._progress_so_far(release.arrival.payload.event, handler.name)
        self._counters.failed[handler.name] += 1
        failure = unstoppable(handler)
        verdict = judge(failure, handler.policy, attempt.number, jitter=0)
        try:
            self._dead_letter(session, release, verdict, handler.name, attempt.number, failure)
            session.progress.done.add(handler.name)
        finally:
            self.submit([session])
