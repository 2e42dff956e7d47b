"""Counts maskline's own errors on an event: the event runs again a few times, then it is given up.

Some errors pass (no memory, no thread), but an event that always meets one must not hold its session up for ever. This
module counts; the dispatcher runs the event again.
"""

from time import time_ns
from typing import Final

from maskline.runtime.logs import get_logger
from maskline.worker.entries.dead_letter import dead_letter_of, internal_error
from maskline.worker.partitions.session import GivenUp, LiveSession

ERRORS_MAX: Final = 3
"""Internal errors met on one event before it becomes a dead letter."""

EVENTS_COUNTED_MAX: Final = 1_024
"""Events whose errors are counted at a time. More means that everything fails: counting begins again."""

RETRY_DELAY_MS: Final = 250.0
"""Before an event that met an internal error runs again."""

_log = get_logger("maskline.worker")


class InternalErrors:
    """The internal errors met on events that are not done."""

    def __init__(self) -> None:
        self.by_entry: dict[str, int] = {}
        """How many an event has met, by its entry ID. Always the same object: the dispatcher holds it."""

    def exhausted(self, session: LiveSession) -> bool:
        """Count an error on the session's first event. Returns whether that was its ERRORS_MAX-th."""
        entry_id: str = session.queue[0].arrival.payload.entry_id
        if len(self.by_entry) >= EVENTS_COUNTED_MAX:
            self.by_entry.clear()
        count = self.by_entry[entry_id] = self.by_entry.pop(entry_id, 0) + 1
        if count < ERRORS_MAX:
            return False
        del self.by_entry[entry_id]
        return True

    def forget(self, session: LiveSession) -> None:
        """Forget the errors of the session's first event, which is done."""
        self.by_entry.pop(session.queue[0].arrival.payload.entry_id, None)


def give_up(session: LiveSession, error: BaseException) -> None:
    """Make the session's first event a dead letter because of `error`: of no handler, unless it is run for one only."""
    partition, release, progress = session.partition, session.queue[0], session.progress
    handler = None if progress is None else progress.only
    cause = internal_error(error, "dispatching", attempts=ERRORS_MAX)._replace(handler=handler)
    letter = dead_letter_of(
        release.arrival,
        cause,
        group=partition.group,
        failed_at_ms=time_ns() // 1_000_000,
        release=release,
    )
    _log.error(
        "dead letter",
        code=letter.code,
        reason=letter.reason,
        handler=handler,
        attempts=ERRORS_MAX,
        session_uuid=session.uuid,
        event_name=letter.event_name,
        sequence_number=letter.sequence_number,
    )
    if progress is not None and handler is not None:
        progress.end(handler, GivenUp(letter, parks=False))
    else:
        partition.add_dead_letter(letter)
