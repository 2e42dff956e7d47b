"""Runs the handlers of one event, one after the other.

- `EventRunner.run`: async handlers that succeed at the first try, without another coroutine around them. Nearly every
  event goes this way.
- `EventRunner._run_special`: an event that came late, that failed before, that may be a suspect, whose session has
  retry queues, or that has a plain or limited handler; and every event while a handler is held.

An event that a handler may not run now (it is held, at its limit, or has a retry queue in this session) is set aside
into the handler's retry queue.

The exception of an attempt is caught here; `worker.dispatch.failed_attempts` decides what follows.
"""

import asyncio
import inspect
import signal
from typing import Final

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.context import Context
from maskline.worker.api.failure_verdict import overtime
from maskline.worker.counters import Counters
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.failed_attempts import LATE, FailedAttempt, FailedAttempts
from maskline.worker.dispatch.plain_handlers import PlainHandlers
from maskline.worker.dispatch.quarantine import Quarantine, SoloQueue, SuspectEvent, SuspectItem
from maskline.worker.dispatch.time_limits import TIME_LIMIT, Attempt
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Release
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession

UNTIL_RESUMED: Final = -1.0
"""Returned in place of a wait: the session is set aside until `Dispatcher.resume`."""

UNTIL_SOLO: Final = -2.0
"""Returned in place of a wait: `SoloQueue` starts the session in its turn."""

UNTIL_THREAD: Final = -3.0
"""Returned in place of a wait: the session waits for a thread of a plain handler."""


def may_be_ctrl_c() -> bool:
    """Whether a KeyboardInterrupt may be the user's. Not in a worker, whose process handles SIGINT itself."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


class EventRunner:
    """Runs events in attempts of the dispatcher's tasks.

    `late_dead`: late events go to the dead letters. `quarantine`: runs suspects; needed if partitions have any.
    `clean`: makes the context of every attempt.
    """

    def __init__(
        self,
        table: Table,
        counters: Counters,
        failed_attempts: FailedAttempts,
        gates: HandlerGates,
        plain: PlainHandlers,
        solo_queue: SoloQueue,
        *,
        quarantine: Quarantine | None,
        clean: CleanContext,
        late_dead: bool,
    ) -> None:
        self._table = table
        self._counters = counters
        self._failed_attempts = failed_attempts
        self._gates = gates
        self._holds, self._failing = gates.holds, gates.failing
        self._plain = plain
        self._solo_queue = solo_queue
        self._quarantine = quarantine
        self._clean = clean
        self._late_dead = late_dead
        self._add_known_numbers = KNOWN_NUMBERS.add_event
        self._stopping = False

    def stop(self) -> None:
        """Stop: from now on a cancellation that neither a time limit nor a lost lease caused ends its task."""
        self._stopping = True

    async def run(self, session: LiveSession, release: Release, attempt: Attempt) -> float | None:
        """Run the handlers that have not handled the event yet.

        Returns None if the event is done; else after how many ms to run it again, or UNTIL_RESUMED, UNTIL_SOLO or
        UNTIL_THREAD. If a stop or a lost lease has cancelled the attempt, its `cancel_reason` stays set.
        """
        partition, event = session.partition, release.arrival.payload.event
        self._add_known_numbers(event)
        if (
            session.progress is not None
            or session.retries is not None
            or self._holds
            or partition.suspects is not None
            or release.order == "late"
        ):
            return await self._run_special(session, release, attempt)
        counters, failing, begun = self._counters, self._failing, False
        for handler in self._table[event.__class__]:
            if handler.special or (begun and (self._holds or not self._may_go_on(partition, attempt))):
                break
            begun, started = True, attempt.now
            attempt.handler, attempt.number, attempt.deadline = handler, 1, started + handler.timeout_s
            failure: BaseException | None = None
            try:
                await handler.call(event, Context(release, handler.name, 1, partition.token))
            except BaseException as error:  # noqa: BLE001  whatever a handler raises is its own affair
                failure = self._failure_of(error, attempt)
            attempt.deadline = 0.0
            attempt.now = now = lease_clock()
            counters.handler_seconds[handler.name] += now - started
            if attempt.cancel_reason or attempt.abandoned:
                failure = self._after_cancellation(failure, attempt, in_thread=False)
                if attempt.cancel_reason:
                    session.progress = self._failed_attempts.progress_before(event, handler.name)
                    return None
            if failure is not None:
                self._failed_attempts.add(session, release, FailedAttempt(handler, 1, failure))
                return await self._run_remaining(session, release, attempt, None, begun=True)
            counters.handled[handler.name] += 1
            if failing and handler.name in failing:
                self._gates.succeeded(handler.name)
        else:
            return None
        if begun:
            session.progress = self._failed_attempts.progress_before(event, handler.name)
        return await self._run_remaining(session, release, attempt, None, begun=begun)

    async def _run_special(self, session: LiveSession, release: Release, attempt: Attempt) -> float | None:
        """As `run`, for an event that came late, that failed before, or that may be a suspect."""
        suspect = None
        if self._quarantine is not None:
            suspect = self._quarantine.suspect_event(session)
        if suspect is not None and suspect.solo and not self._solo_queue.admit(session, attempt):
            return UNTIL_SOLO
        only = None if session.progress is None else session.progress.only
        if only is not None:
            if all(handler.name != only for handler in self._table[release.arrival.payload.event.__class__]):
                self._failed_attempts.give_up_without_handler(session, release, only)
                return None
            if self._gates.paused(only) is not None:  # since the queue was taken
                self._failed_attempts.set_aside_rest(session)
                return None
            self._counters.retried[only] += 1
        elif self._late_dead and release.order == "late":
            self._failed_attempts.give_up_unhandled(session, release, LATE)
            return None
        return await self._run_remaining(session, release, attempt, suspect, begun=False)

    async def _run_remaining(
        self,
        session: LiveSession,
        release: Release,
        attempt: Attempt,
        suspect: SuspectEvent | SuspectItem | None,
        *,
        begun: bool,
    ) -> float | None:
        """As `run`, for every handler whose attempt is due. `begun`: a handler has just run."""
        event: Event = release.arrival.payload.event
        only = None if session.progress is None else session.progress.only
        waits_ms: list[float] = []
        elsewhere = False
        for handler in self._table[event.__class__]:
            progress = session.progress
            if progress is not None:
                if progress.is_over(handler.name):
                    continue
                if (wait_ms := progress.wait_ms(handler.name, attempt.now)) > 0:
                    waits_ms.append(wait_ms)
                    continue
            if only is None and self._must_queue(session, handler):
                self._failed_attempts.set_aside(session, release, handler)
                continue
            if not attempt.may_run(handler):
                elsewhere = True
                self._request_thread(session, event, handler)
                continue
            if begun and not self._may_go_on(session.partition, attempt):
                session.progress = progress or self._failed_attempts.progress_before(event, handler.name)
                return 0.0 if attempt.tainted() else UNTIL_RESUMED
            begun = True
            delay_ms = await self._run_handler(handler, session, release, attempt, suspect)
            if attempt.cancel_reason:
                session.progress = progress or self._failed_attempts.progress_before(event, handler.name)
                return None
            if delay_ms is not None:
                waits_ms.append(delay_ms)
        if elsewhere and attempt.slot is not None:
            return 0.0  # a runner goes on with it
        return UNTIL_THREAD if elsewhere and not waits_ms else min(waits_ms, default=None)

    async def _run_handler(
        self,
        handler: BoundHandler,
        session: LiveSession,
        release: Release,
        attempt: Attempt,
        suspect: SuspectEvent | SuspectItem | None,
    ) -> float | None:
        """Run a handler on an event, and record what it came to. Returns after how many ms to try it again, if so."""
        progress, partition = session.progress, session.partition
        permit = handler.limited and (progress is None or progress.only is None)
        if permit and not self._gates.admit(handler.name):
            self._failed_attempts.set_aside(session, release, handler)
            return None
        number = 1 if progress is None else progress.attempts.get(handler.name, 0) + 1
        ctx = Context(release, handler.name, number, partition.token)
        if session.retries is not None:
            ctx.skipped = session.retries[handler.name].skipped
        try:
            failure = await self._attempt(handler, release.arrival.payload.event, ctx, attempt, suspect)
        finally:
            if permit:
                self._gates.release(handler.name)
        if attempt.cancel_reason:
            return None
        if failure is not None:
            crashes = 0 if suspect is None else suspect.crashes(handler)
            return self._failed_attempts.add(
                session, release, FailedAttempt(handler, number, failure, crashes)
            )
        self._counters.handled[handler.name] += 1
        if handler.name in self._failing:
            self._gates.succeeded(handler.name)
        if progress is not None:
            progress.done.add(handler.name)
        return None

    async def _attempt(
        self,
        handler: BoundHandler,
        event: Event,
        ctx: Context,
        attempt: Attempt,
        suspect: SuspectEvent | SuspectItem | None,
    ) -> BaseException | None:
        """Run one attempt. Returns the exception it failed with, None if the event is handled."""
        started = lease_clock()
        attempt.handler, attempt.number = handler, ctx.attempt
        in_thread = handler.in_thread
        failure: BaseException | None = None
        try:
            if in_thread and attempt.solo:
                attempt.slot = await self._plain.acquire(handler.name)
            in_sandbox = suspect is not None and await suspect.before_attempt(handler, ctx)
            if in_thread and not in_sandbox and attempt.slot is not None:
                attempt.deadline = lease_clock() + handler.timeout_s
                result = await attempt.slot.run(handler.call, event, ctx, context=self._clean.copy())
                if inspect.isawaitable(result):  # a plain function around an async one
                    attempt.slot.release()
                    in_thread = False
                    await result
            elif not in_sandbox:
                attempt.deadline = lease_clock() + handler.timeout_s
                await handler.call(event, ctx)
        except BaseException as error:  # noqa: BLE001  as above
            failure = self._failure_of(error, attempt)
        finally:
            if attempt.solo and attempt.slot is not None:
                attempt.slot.release()
        attempt.deadline = 0.0
        attempt.now = lease_clock()
        self._counters.handler_seconds[handler.name] += attempt.now - started
        if suspect is not None and not attempt.abandoned:
            suspect.after_attempt(handler)
        if attempt.cancel_reason or attempt.abandoned:
            failure = self._after_cancellation(failure, attempt, in_thread=in_thread)
        return failure

    def _must_queue(self, session: LiveSession, handler: BoundHandler) -> bool:
        """Whether an event must go into the handler's retry queue: it is held, or earlier events wait there."""
        retries = session.retries
        return handler.name in self._holds or (retries is not None and retries.blocks(handler.name))

    def _may_go_on(self, partition: Partition, attempt: Attempt) -> bool:
        """Whether another handler of an event may start after one has ended."""
        return attempt.now < partition.lease_until and not attempt.tainted()

    def _failure_of(self, error: BaseException, attempt: Attempt) -> BaseException:
        """The failure that an exception in an attempt stands for. Raises it again if it is not the handler's."""
        if isinstance(error, asyncio.CancelledError):
            # Unless a stop is under way, something that the handler waited for was cancelled.
            if self._stopping and not attempt.cancel_reason:
                raise error
        elif isinstance(error, GeneratorExit) or (isinstance(error, KeyboardInterrupt) and may_be_ctrl_c()):
            raise error
        return error

    def _after_cancellation(
        self, failure: BaseException | None, attempt: Attempt, *, in_thread: bool
    ) -> BaseException | None:
        """The failure of an attempt that the sweep or a stop has cancelled. Ends the task of an abandoned attempt."""
        if attempt.abandoned:
            raise asyncio.CancelledError
        attempt.task.uncancel()
        if attempt.cancel_reason == TIME_LIMIT:
            attempt.cancel_reason = ""
            # A handler that has ended normally all the same has handled the event.
            if failure is not None and attempt.handler is not None:
                return overtime(attempt.handler, in_thread=in_thread)
        return failure

    def _request_thread(self, session: LiveSession, event: Event, handler: BoundHandler) -> None:
        """Request a thread for a plain handler whose attempt is due, as this task may not run it."""
        if handler.in_thread:
            if session.progress is None:
                session.progress = self._failed_attempts.progress_before(event, handler.name)
            self._plain.request_thread(session, session.progress, handler.name)
