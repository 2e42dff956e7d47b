"""Finishes events whose handlers are done with them, and items of retry queues.

Whatever an event came to for a handler that has not handled it is written by the commit that finishes the event.
"""

from collections.abc import Callable

from maskline.worker.dispatch.failed_attempts import FailedAttempts
from maskline.worker.dispatch.internal_errors import InternalErrors
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.retry_queue import RetryQueue
from maskline.worker.partitions.session import LiveSession, Progress


class EventFinisher:
    """`on_progress(partition)`: called when the first event since the partition's last commit is done."""

    def __init__(
        self,
        gates: HandlerGates,
        failed_attempts: FailedAttempts,
        internal_errors: InternalErrors,
        *,
        on_progress: Callable[[Partition], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self._gates = gates
        self._failed_attempts = failed_attempts
        self._internal_errors = internal_errors
        self._error_counts = internal_errors.by_entry
        self._on_progress = on_progress
        self._wall_ms = wall_ms
        self.on_queue_closed: Callable[[RetryQueue], None] = lambda _queue: None
        """Called when a retry queue has left memory."""

    def finish(self, session: LiveSession) -> None:
        """Finish the first event of a session's queue: every handler has handled it, or it has an outcome."""
        partition, progress = session.partition, session.progress
        if not session.queue:
            return  # a retry queue of a partition that was lost meanwhile
        if self._error_counts:
            self._internal_errors.forget(session)
        if progress is None:
            partition.finish(session, session.queue[0])
        else:
            self._finish_special(session, progress)
        if not partition.commit_requested:
            partition.commit_requested = True
            self._on_progress(partition)

    def set_aside_unfinished(self, partition: Partition) -> None:
        """Set aside what handlers have begun and not finished, for a partition that is given back.

        The next owner goes on where this one stops: it knows which handlers are done, and how often others failed. Call
        it when none of the partition's handlers is at work.
        """
        for session in partition.sessions_with_work():
            # A suspect too: its crashes are counted anew, as takes of its retry queue, but no handler runs twice.
            if session.progress is not None and session.progress.begun:
                self._failed_attempts.set_aside_rest(session)
                self.finish(session)
        for queue in [*partition.retry_queues.values()]:
            progress, item = queue.progress, queue.items[0]
            attempts = 0 if progress is None else progress.attempts.get(queue.handler, 0)
            if progress is not None and (progress.outcomes or attempts > item.attempts):
                if not progress.outcomes:
                    self._failed_attempts.set_aside_rest(queue)
                self.finish(queue)
        self.drop_queues(partition)

    def drop_queues(self, partition: Partition) -> None:
        """Remove a partition's retry queues from memory: it is given back, or lost.

        What is under way of a lost partition ends, and counts for nothing.
        """
        for queue in [*partition.retry_queues.values()]:
            self._close_queue(queue, untake=True)

    # Inside

    def _finish_special(self, session: LiveSession, progress: Progress) -> None:
        """Finish an event that failed before, or was set aside, or had to wait."""
        session.progress = None
        if isinstance(session, RetryQueue):
            goes_on = session.partition.finish_first_item(session, progress)
            if not goes_on or not self._gates.may_go_on(session.handler):
                self._close_queue(session, untake=goes_on)
            return
        release = session.queue[0]
        if progress.outcomes:
            session.partition.write_outcomes(session, release, progress.outcomes, self._wall_ms())
        session.partition.finish(session, release)

    def _close_queue(self, queue: RetryQueue, *, untake: bool) -> None:
        if queue.partition.close_queue(queue, untake=untake):
            self._gates.queue_ended(queue.handler)
            self.on_queue_closed(queue)
