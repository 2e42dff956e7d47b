"""Decides what follows a failed attempt: records the handler's retry, or writes its dead letter."""

import random
from time import time_ns
from typing import NamedTuple

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.context import Context
from maskline.worker.api.failure_verdict import (
    Verdict,
    cause_of_giving_up,
    failure_report,
    judge,
    unstoppable,
)
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import dead_letter_of
from maskline.worker.ordering.reorder import Release
from maskline.worker.partitions.session import LiveSession, Progress

LATE: Verdict = Verdict(None, "late", "late: its place in the order had passed")
"""The verdict on late events if MASKLINE_LATE is `dead`."""

_log = get_logger("maskline.worker")


class FailedAttempt(NamedTuple):
    """An attempt that has failed."""

    handler: BoundHandler
    number: int
    """1 for the first attempt."""
    failure: BaseException
    crashes: int = 0
    """How often the handler crashed a worker on this event before."""


class FailedAttempts:
    """Decides on failed attempts, and records the decision in the session's progress. `table`: the handlers by event
    type.
    """

    def __init__(self, table: Table, counters: Counters) -> None:
        self._table = table
        self._counters = counters

    def add(self, session: LiveSession, release: Release, failed: FailedAttempt) -> float | None:
        """Decide on an attempt. Returns after how many ms to try again; None if the handler has given the event up."""
        handler = failed.handler
        progress = self._count(session, release, handler)
        now_ms = time_ns() // 1_000_000
        verdict = judge(
            failure_report(failed.failure),
            handler.policy,
            attempts=failed.number,
            first_failed_ms=progress.first_failed_ms.setdefault(handler.name, now_ms),
            now_ms=now_ms,
            jitter=random.random(),  # noqa: S311  no secret
        )
        if verdict.delay_ms is None:
            give_up(session, release, verdict, failed)
            progress.done.add(handler.name)
        else:
            progress.failed(handler.name, failed.number, lease_clock() + verdict.delay_ms / 1000)
            Context(release, handler.name, failed.number, session.partition.token).log.warning(
                "handler attempt failed", retry_in_ms=round(verdict.delay_ms), why=verdict.reason
            )
        return verdict.delay_ms

    def add_abandoned(self, session: LiveSession, handler: BoundHandler, number: int) -> None:
        """Give the session's first event up for a handler that ignores the end of its time limit."""
        release = session.queue[0]
        progress = self._count(session, release, handler)
        failed = FailedAttempt(handler, number, unstoppable(handler))
        verdict = judge(
            failure_report(failed.failure),
            handler.policy,
            attempts=number,
            first_failed_ms=None,
            now_ms=0,
            jitter=0,
        )
        give_up(session, release, verdict, failed)
        progress.done.add(handler.name)

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

    def _count(self, session: LiveSession, release: Release, handler: BoundHandler) -> Progress:
        self._counters.failed[handler.name] += 1
        if session.progress is None:
            session.progress = self.progress_before(release.arrival.payload.event, handler.name)
        return session.progress


def give_up(session: LiveSession, release: Release, verdict: Verdict, failed: FailedAttempt | None) -> None:
    """Write a dead letter of the event. `failed`: the handler's last attempt, None if no handler was reached."""
    handler, attempts, failure = None, 0, None
    if failed is not None:
        handler, attempts, failure = failed.handler.name, failed.number + failed.crashes, failed.failure
    partition = session.partition
    cause = cause_of_giving_up(verdict, failure, handler=handler, attempts=attempts)
    partition.add_dead_letter(
        dead_letter_of(
            release.arrival,
            cause,
            group=partition.group,
            failed_at_ms=time_ns() // 1_000_000,
            release=release,
        )
    )
    _log.error(
        "dead letter",
        code=verdict.code,
        reason=verdict.reason,
        handler=handler,
        attempts=attempts,
        session_uuid=session.uuid,
        event_name=release.arrival.payload.event.event_name,
        sequence_number=release.arrival.number,
    )
