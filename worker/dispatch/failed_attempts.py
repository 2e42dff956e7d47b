"""Decides what follows a failed attempt, and records it in the progress of the session's first event.

| what | follows |
| --- | --- |
| the next try is due within INLINE_WINDOW_MS of the first failure | the session waits for it |
| a later try | the event is set aside into the handler's retry queue |
| the handler is held (paused, down) | the same, and the attempt does not count |
| no further try | a dead letter; while MASKLINE_DEAD_MAX_BYTES is reached, another try instead |
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from maskline.runtime.clock import lease_clock, wall_clock_ms
from maskline.runtime.logs import get_logger
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.context import Context
from maskline.worker.api.failure_verdict import (
    FailureReport,
    Verdict,
    cause_of_giving_up,
    failure_report,
    judge,
    unstoppable,
)
from maskline.worker.api.retry_schedule import INLINE_WINDOW_MS, is_inline
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import DeadLetter, dead_letter_of
from maskline.worker.entries.queue_item import WHY_MAX_CHARS
from maskline.worker.error_text import storable_text
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Release
from maskline.worker.partitions.session import GivenUp, LiveSession, Progress, SetAside

LATE: Verdict = Verdict(None, "late", "late: its place in the order had passed")
"""The verdict on late events if MASKLINE_LATE is `dead`."""

NO_HANDLER: Verdict = Verdict(
    None, "no_handler", "no handler: the handler that it waited for does not take this event any more"
)

_log = get_logger("maskline.worker")


class FailedAttempt(NamedTuple):
    """An attempt that has failed."""

    handler: BoundHandler
    number: int
    """1 for the first attempt."""
    failure: BaseException
    crashes: int = 0
    """How often the handler crashed a worker on this event before."""


class RetryTiming(NamedTuple):
    """When failed attempts are tried again; by default as in a worker. The harness for tests has a time of its own."""

    wall_ms: Callable[[], int] = wall_clock_ms
    """The time in milliseconds since the epoch."""
    chance: Callable[[], float] = random.random
    """A random number, 0 … 1: which part of a backoff is waited."""
    inline_window_ms: int = INLINE_WINDOW_MS
    """For how long after its first failure an event is tried again by real time, before it is set aside."""


class FailedAttempts:
    """Decides on failed attempts. `table`: the handlers by event type."""

    def __init__(self, table: Table, counters: Counters, gates: HandlerGates, timing: RetryTiming) -> None:
        self._table = table
        self._counters = counters
        self._gates = gates
        self._wall_ms = timing.wall_ms
        self._chance = timing.chance
        self._inline_window_ms = timing.inline_window_ms

    def add(self, session: LiveSession, release: Release, failed: FailedAttempt) -> float | None:
        """Decide on an attempt. Returns after how many ms the session tries again; None if the event has an outcome
        for the handler.
        """
        handler, name = failed.handler, failed.handler.name
        progress = self._count(session, release, handler)
        report = failure_report(failed.failure)
        if report.kind != "rejected":
            self._gates.failed(name, session.uuid)
            if name in self._gates.holds and report.kind in ("failed", "timed_out"):
                self._hold(session, release, failed, report)
                return None
        now_ms = self._wall_ms()
        first_failed_ms = progress.first_failed_ms.setdefault(name, now_ms)
        verdict = judge(
            report,
            handler.policy,
            attempts=failed.number,
            first_failed_ms=max(first_failed_ms, self._gates.up_since_ms(name)),
            now_ms=now_ms,
            jitter=self._chance(),
        )
        delay_ms, partition = verdict.delay_ms, session.partition
        if delay_ms is None:
            if not partition.dead_letters_full:
                self.give_up(session, release, verdict, failed)
                return None
            delay_ms = handler.policy.backoff_max_ms
        inline = is_inline(first_failed_ms, now_ms, delay_ms, window_ms=self._inline_window_ms)
        Context(release, name, failed.number, partition.token).log.warning(
            "handler attempt failed",
            retry_in_ms=round(delay_ms),
            set_aside=not inline,
            counts=True,
            why=verdict.reason,
        )
        if inline:
            progress.failed(name, failed.number, lease_clock() + delay_ms / 1000)
            return delay_ms
        why = storable_text(verdict.reason)[:WHY_MAX_CHARS]
        progress.end(name, SetAside(failed.number, first_failed_ms, round(delay_ms), why))
        return None

    def add_abandoned(self, session: LiveSession, handler: BoundHandler, number: int) -> None:
        """Give the session's first event up for a handler that ignores the end of its time limit."""
        release = session.queue[0]
        self._count(session, release, handler)
        self._gates.failed(handler.name, session.uuid)
        failed = FailedAttempt(handler, number, unstoppable(handler))
        report, now_ms = failure_report(failed.failure), self._wall_ms()
        verdict = judge(
            report, handler.policy, attempts=number, first_failed_ms=None, now_ms=now_ms, jitter=0
        )
        self.give_up(session, release, verdict, failed)

    def give_up(
        self, session: LiveSession, release: Release, verdict: Verdict, failed: FailedAttempt
    ) -> None:
        """Make the event a dead letter of one handler."""
        handler = failed.handler
        parks = handler.on_give_up == "park"
        letter = self._letter(session, release, verdict, failed, parks=parks)
        if session.progress is None:
            session.progress = self.progress_before(release.arrival.payload.event, handler.name)
        session.progress.end(handler.name, GivenUp(letter, parks))

    def give_up_unhandled(self, session: LiveSession, release: Release, verdict: Verdict) -> None:
        """Make the event a dead letter of no handler: none was reached."""
        session.partition.add_dead_letter(self._letter(session, release, verdict, None, parks=False))

    def give_up_without_handler(self, session: LiveSession, release: Release, handler: str) -> None:
        """Make an event of a retry queue a dead letter, whose handler does not take it any more."""
        letter = self._letter(session, release, NO_HANDLER, None, parks=False)
        if session.progress is not None:
            session.progress.end(handler, GivenUp(letter, parks=False))

    def set_aside(self, session: LiveSession, release: Release, handler: BoundHandler) -> None:
        """Set the event aside for a handler that may not run it now: no attempt is spent."""
        progress = session.progress
        if progress is None:
            event = release.arrival.payload.event
            progress = session.progress = self.progress_before(event, handler.name)
        self._set_aside(progress, handler.name)

    def set_aside_rest(self, session: LiveSession) -> None:
        """Set the session's first event aside for every handler that has not handled it, with its attempts so far."""
        progress = session.progress
        if progress is not None:
            for handler in self._table[session.queue[0].arrival.payload.event.__class__]:
                if handler.name not in progress.done and progress.only in (None, handler.name):
                    self._set_aside(progress, handler.name)

    def progress_before(self, event: Event, handler: str) -> Progress:
        """The progress of an event whose first handler to fail, or to wait, is the one of this name.

        Those before it have succeeded.
        """
        progress = Progress()
        for other in self._table[type(event)]:
            if other.name == handler:
                break
            progress.done.add(other.name)
        return progress

    # Inside

    def _count(self, session: LiveSession, release: Release, handler: BoundHandler) -> Progress:
        self._counters.failed[handler.name] += 1
        if session.progress is None:
            session.progress = self.progress_before(release.arrival.payload.event, handler.name)
        return session.progress

    def _hold(
        self, session: LiveSession, release: Release, failed: FailedAttempt, report: FailureReport
    ) -> None:
        """Set the event aside after an attempt that does not count, as the handler is held."""
        name = failed.handler.name
        delay_ms = self._gates.held_retry_ms(name)
        Context(release, name, failed.number, session.partition.token).log.warning(
            "handler attempt failed",
            retry_in_ms=delay_ms,
            set_aside=True,
            counts=False,
            why=report.text,
        )
        if session.progress is not None:
            self._set_aside(session.progress, name, delay_ms)

    def _set_aside(self, progress: Progress, handler: str, delay_ms: int = 0) -> None:
        """Set the event aside with its attempts so far, due in `delay_ms` or when its next attempt is, if later."""
        if handler in progress.attempts:
            delay_ms = max(round(progress.wait_ms(handler, lease_clock())), delay_ms)
        attempts, first_failed_ms = progress.attempts.get(handler, 0), progress.first_failed_ms.get(handler)
        progress.end(handler, SetAside(attempts, first_failed_ms, delay_ms))

    def _letter(
        self,
        session: LiveSession,
        release: Release,
        verdict: Verdict,
        failed: FailedAttempt | None,
        *,
        parks: bool,
    ) -> DeadLetter:
        """The dead letter of an event, which is logged. `failed`: the last attempt, None if no handler was reached."""
        handler = None if session.progress is None else session.progress.only
        attempts, failure = 0, None
        if failed is not None:
            handler, attempts, failure = failed.handler.name, failed.number + failed.crashes, failed.failure
        cause = cause_of_giving_up(verdict, failure, handler=handler, attempts=attempts)
        _log.error(
            "dead letter",
            code=verdict.code,
            reason=verdict.reason,
            handler=handler,
            attempts=attempts,
            parks=parks,
            session_uuid=session.uuid,
            event_name=release.arrival.payload.event.event_name,
            sequence_number=release.arrival.number,
        )
        return dead_letter_of(
            release.arrival,
            cause,
            group=session.partition.group,
            failed_at_ms=self._wall_ms(),
            release=release,
            parked=parks,
        )
