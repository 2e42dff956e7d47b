"""Runs suspects as `worker.poison.tracker` decides: marks in Redis before a handler starts, solo runs, sandbox runs.

A mark is written by a fenced script, so that an owner which was paused past its lease cannot mark. A runner waits until
its mark is written; the marks of one turn of the event loop travel together.

Suspects with crashes run solo (`SoloQueue`): if two of them were under way when the worker goes down, both would count
a crash. A suspect without a crash runs beside others, and gets its first crash at worst.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import hiredis

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.context import Context
from maskline.worker.api.exceptions import HandlerCrashedError
from maskline.worker.commands import scripts
from maskline.worker.commands.marks import Mark, MarkState, mark_field
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.time_limits import Attempt
from maskline.worker.ordering.reorder import Release
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.retry_queue import RetryQueue
from maskline.worker.partitions.session import LiveSession
from maskline.worker.poison.sandbox import Sandbox, SandboxUnavailableError
from maskline.worker.poison.tracker import (
    RunMode,
    Suspect,
    run_mode,
    suspects_after_takeover,
)

_log = get_logger("maskline.worker")


class SuspectEvent:
    """The first event of a session, which is a suspect, while its handlers run."""

    __slots__ = ("_quarantine", "_session", "_suspect")

    def __init__(self, quarantine: "Quarantine", session: LiveSession, suspect: Suspect) -> None:
        self._quarantine = quarantine
        self._session = session
        self._suspect = suspect

    @property
    def solo(self) -> bool:
        """Whether a handler that has yet to handle the event must run solo."""
        progress = self._session.progress
        done = progress.done if progress is not None else ()
        return any(
            handler not in done and self._quarantine.run_mode(self._suspect, handler) is RunMode.SOLO
            for handler in self._suspect.marked
        )

    def crashes(self, handler: BoundHandler) -> int:
        """How often the handler crashed on the event."""
        return self._suspect.crashes(handler.name)

    async def before_attempt(self, handler: BoundHandler, ctx: Context) -> bool:
        """Mark in Redis that the handler starts. Returns True if the handler has handled the event in a sandbox, so
        that it need not start.

        Raises what the handler failed with in the sandbox, HandlerCrashedError if it may not start again.
        """
        return await self._quarantine.before_attempt(self._session, handler, ctx, self._suspect)

    def after_attempt(self, handler: BoundHandler) -> None:
        """Mark in Redis that the attempt has ended, with whatever result."""
        entry_id = self._session.queue[0].arrival.payload.entry_id
        mark = Mark(self._suspect.crashes(handler.name), "idle")
        self._quarantine.write_marks(self._session.partition, [(mark_field(entry_id, handler.name), mark)])


class SuspectItem:
    """The first event of a retry queue that was under way when a worker went down.

    Redis counts how often a queue was taken without the end being committed: so it needs no marks.
    """

    __slots__ = ("_quarantine", "_queue")

    def __init__(self, quarantine: "Quarantine", queue: RetryQueue) -> None:
        self._quarantine = quarantine
        self._queue = queue

    @property
    def solo(self) -> bool:
        """Whether the handler must run solo."""
        return self._mode() is RunMode.SOLO

    def crashes(self, _handler: BoundHandler) -> int:
        """How often a worker went down while it had the queue."""
        return self._queue.crashes

    async def before_attempt(self, handler: BoundHandler, ctx: Context) -> bool:
        """As `SuspectEvent.before_attempt`."""
        release, crashes = self._queue.queue[0], self._queue.crashes
        while (mode := self._mode()) is RunMode.SANDBOX:
            if await self._quarantine.run_in_sandbox(handler, release, ctx, crashes):
                return True
        if mode is RunMode.DEAD_LETTER:
            raise HandlerCrashedError(crashes)
        return False

    def after_attempt(self, handler: BoundHandler) -> None:
        """The attempt has ended, with whatever result: the commit says so."""

    def _mode(self) -> RunMode:
        return self._quarantine.run_mode_after(self._queue.crashes, self._queue.handler)


class Quarantine:
    """The suspects of a worker process.

    `on_fenced(partition)`: called when a mark was refused because the lease is not ours any more.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        sandbox: Sandbox,
        counters: Counters,
        on_fenced: Callable[[Partition], None],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._sandbox = sandbox
        self._counters = counters
        self._on_fenced = on_fenced
        self._waiting_log = LogRateLimit()

    def taken_over(self, partition: Partition, acquired: scripts.AcquiredLease) -> None:
        """Find the suspects of a partition just acquired, and write the crashes that this adds back to Redis."""
        partition.suspects = suspects_after_takeover(
            clean=acquired.clean,
            cursor=acquired.cursor,
            pending=acquired.pending,
            last_id=acquired.last_id,
            marks=acquired.marks,
        )
        if partition.suspects is None:
            return
        found = partition.suspects.found
        for found_mark in found:
            if found_mark.crashed:
                self._counters.crashes += 1
                _log.warning(
                    "worker crashed in handler",
                    handler=found_mark.handler,
                    entry_id=found_mark.entry_id,
                    partition=partition.number,
                    crashes=found_mark.mark.crashes,
                )
        changed = [(found_mark.field, found_mark.mark) for found_mark in found if not found_mark.stored]
        for first in range(0, len(changed), scripts.MARKS_MAX):
            self.write_marks(partition, changed[first : first + scripts.MARKS_MAX])

    def suspect_event(self, session: LiveSession) -> "SuspectEvent | SuspectItem | None":
        """The session's first event, if it is a suspect."""
        if isinstance(session, RetryQueue):
            return SuspectItem(self, session) if session.crashes else None
        suspects = session.partition.suspects
        suspect = suspects and suspects.get(session.queue[0].arrival.payload.entry_id)
        return SuspectEvent(self, session, suspect) if suspect else None

    def run_mode(self, suspect: Suspect, handler: str) -> RunMode:
        """How the handler of this name runs on the suspect."""
        return self.run_mode_after(suspect.crashes(handler), handler)

    def run_mode_after(self, crashes: int, handler: str) -> RunMode:
        """How a handler runs on an event after so many crashes."""
        return run_mode(crashes, sandbox_available=self._sandbox.available(handler))

    async def run_in_sandbox(
        self, handler: BoundHandler, release: Release, ctx: Context, crashes: int
    ) -> bool:
        """Run a handler in a sandbox; False if there is none now. Raises what it failed with."""
        try:
            await self._sandbox.run(handler, release, ctx, crashes)
        except SandboxUnavailableError as error:
            _log.error("sandbox unavailable", handler=handler.name, reason=str(error))
            return False
        return True

    async def before_attempt(
        self, session: LiveSession, handler: BoundHandler, ctx: Context, suspect: Suspect
    ) -> bool:
        """See `SuspectEvent.before_attempt`."""
        release, crashes = session.queue[0], suspect.crashes(handler.name)
        suspect.marked.add(handler.name)

        async def mark(state: MarkState) -> None:
            await self._mark(session.partition, mark_field(ctx.entry_id, handler.name), Mark(crashes, state))

        while (mode := self.run_mode(suspect, handler.name)) is RunMode.SANDBOX:
            await mark("trial")  # the word that marks have for a sandbox run
            if await self.run_in_sandbox(handler, release, ctx, crashes):
                return True
        if mode is RunMode.DEAD_LETTER:
            raise HandlerCrashedError(crashes)
        await mark("running")
        return False

    def write_marks(self, partition: Partition, marks: Sequence[tuple[str, Mark]]) -> None:
        """Write marks, by field, without waiting for the reply. If it is lost, an event may later run as a suspect
        without need.
        """
        connection = self._connections.commands(partition.number)
        if connection is not None and not partition.lost:
            connection.send(scripts.mark(self._keys, partition.number, partition.lease_value, marks), 1)

    async def _mark(self, partition: Partition, field: str, mark: Mark) -> None:
        """Write a mark, and wait until Redis has it and the lease is surely held.

        If that never happens, the attempt is cancelled from outside.
        """
        packed = scripts.mark(self._keys, partition.number, partition.lease_value, [(field, mark)])
        while True:
            connection = await self._connections.commands_ready(partition.number)
            reason = "the lease is in doubt"
            try:
                (reply,) = await connection.send(packed, 1)
            except RedisUnavailableError as error:
                reply, reason = None, str(error)
            if reply == 1 and lease_clock() < partition.lease_until:
                return
            if reply == 0:
                reason = "the lease is lost"
                if not partition.lost:
                    self._counters.fenced += 1
                    self._on_fenced(partition)
            if isinstance(reply, hiredis.ReplyError):
                reason = str(reply)
                self._connections.handle_error_reply(partition.number, reason)
            self._log_waiting(partition, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def _log_waiting(self, partition: Partition, reason: str) -> None:
        # The words after the first may name a script or a slot, and differ every time.
        if self._waiting_log.due(partition.number, reason.partition(" ")[0]):
            _log.error(
                "suspect mark not written",
                partition=partition.number,
                reason=reason,
                repeats_of_all=self._waiting_log.take_suppressed(),
            )


class SoloQueue:
    """Runs suspects with crashes one after the other, in order of arrival. No I/O.

    `start_solo(session)`: start the session in an attempt whose `solo` is set, and call `leave` when it has ended.

    A waiting session takes no runner, and waits once: so the queue is bounded by the sessions with unfinished events.
    """

    def __init__(self, start_solo: Callable[[LiveSession], None]) -> None:
        self._start_solo = start_solo
        self._taken = False
        self._waiting: deque[LiveSession] = deque()

    def admit(self, session: LiveSession, attempt: Attempt) -> bool:
        """Whether the attempt may run the session now. If not, the session waits, and is started in its turn."""
        if attempt.solo:
            return True
        self._waiting.append(session)
        self._start_next()
        return False

    def leave(self, attempt: Attempt) -> None:
        """Start the next session if the attempt, which has ended or was abandoned, is solo."""
        if attempt.solo:
            attempt.solo = False
            self._taken = False
            self._start_next()

    def _start_next(self) -> None:
        if self._waiting and not self._taken:
            self._taken = True
            self._start_solo(self._waiting.popleft())
