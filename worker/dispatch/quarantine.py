"""Carries out what `strikes` decides: marks in Redis before a suspect's handler starts, and trials.

A mark is written by a fenced script, so that an owner which was paused past its lease cannot mark. Whoever waits for
one waits in a runner; the marks of a loop tick travel together.
"""

import asyncio
from collections.abc import Callable, Sequence

import hiredis

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.api.context import Context
from maskline.worker.api.failures import HandlerCrashedError
from maskline.worker.api.registry import BoundHandler
from maskline.worker.commands import scripts
from maskline.worker.commands.marks import Mark, State, mark_field
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession
from maskline.worker.poison.sandbox import Sandbox, TrialImpossibleError
from maskline.worker.poison.tracker import Standing, Step, step, suspicion

_log = get_logger("maskline.worker")


class Case:
    """One suspect event, while its handlers run."""

    __slots__ = ("_session", "_standing", "_suspects")

    def __init__(self, suspects: "Quarantine", session: LiveSession, standing: Standing) -> None:
        self._suspects = suspects
        self._session = session
        self._standing = standing

    @property
    def apart(self) -> bool:
        """Whether a handler that has yet to handle the event must run alone."""
        progress = self._session.progress
        done = progress.done if progress is not None else ()
        return any(
            handler not in done and self._suspects.alone(self._standing, handler)
            for handler in self._standing.marked
        )

    def strikes(self, handler: BoundHandler) -> int:
        return self._standing.strikes(handler.name)

    async def begin(self, handler: BoundHandler, ctx: Context) -> bool:
        """Mark that the handler starts. True if it needs no start: it has handled the event in a trial.

        Raises what the handler failed with there, HandlerCrashedError where it is not to start any more.
        """
        return await self._suspects.begin(self._session, handler, ctx, self._standing)

    def end(self, handler: BoundHandler) -> None:
        """The attempt has ended, however it did."""
        entry_id = self._session.queue[0].arrival.payload.entry_id
        mark = Mark(self._standing.strikes(handler.name), "idle")
        self._suspects.note(self._session.partition, [(mark_field(entry_id, handler.name), mark)])


class Quarantine:
    """`on_fenced(partition)`: a mark was refused because the lease is not ours any more."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, trials: Sandbox, counters: Counters,
        on_fenced: Callable[[Partition], None],
    ) -> None:  # fmt: skip
        self._connections = connections
        self._keys = keys
        self._trials = trials
        self._counters = counters
        self._on_fenced = on_fenced
        self._waiting_lines = LogRateLimit()

    def taken_over(self, partition: Partition, acquired: scripts.AcquiredLease) -> None:
        """See whom to suspect in a partition just taken, and write back to Redis what strikes that makes."""
        partition.suspects = suspicion(
            clean=acquired.clean, cursor=acquired.cursor, pending=acquired.pending, last_id=acquired.last_id,
            marks=acquired.marks,
        )  # fmt: skip
        if partition.suspects is None:
            return
        found = partition.suspects.found
        for one in found:
            if one.struck:
                self._counters.strikes += 1
                _log.warning(
                    "a worker went down while this handler ran",
                    handler=one.handler, entry_id=one.entry_id, partition=partition.number,
                    strikes=one.mark.strikes,
                )  # fmt: skip
        unsettled = [(one.field, one.mark) for one in found if not one.settled]
        for first in range(0, len(unsettled), scripts.MARKS_MAX):
            self.note(partition, unsettled[first : first + scripts.MARKS_MAX])

    def case(self, session: LiveSession) -> Case | None:
        """The case of the session's first event; None if that is no suspect."""
        suspects = session.partition.suspects
        standing = suspects and suspects.of(session.queue[0].arrival.payload.entry_id)
        return Case(self, session, standing) if standing else None

    def alone(self, standing: Standing, handler: str) -> bool:
        """Whether the handler must run alone."""
        return step(standing.strikes(handler), triable=self._trials.can_try(handler)) is Step.ALONE

    async def begin(
        self, session: LiveSession, handler: BoundHandler, ctx: Context, standing: Standing
    ) -> bool:
        """See Case.begin."""
        release, strikes = session.queue[0], standing.strikes(handler.name)
        standing.marked.add(handler.name)

        async def mark(state: State) -> None:
            await self._mark(session.partition, mark_field(ctx.entry_id, handler.name), Mark(strikes, state))

        while (how := step(strikes, triable=self._trials.can_try(handler.name))) is Step.TRIAL:
            await mark("trial")
            try:
                await self._trials.hold(handler, release, ctx, strikes)
            except TrialImpossibleError as error:
                _log.error("a handler could not be tried by itself", handler=handler.name, reason=str(error))
            else:
                return True
        if how is Step.BURY:
            raise HandlerCrashedError(strikes)
        await mark("running")
        return False

    def note(self, partition: Partition, marks: Sequence[tuple[str, Mark]]) -> None:
        """Write marks and do not wait for it. What gets lost costs an event a closer look, no more."""
        connection = self._connections.commands(partition.number)
        if connection is not None and not partition.lost:
            connection.send(scripts.mark(self._keys, partition.number, partition.lease_value, marks), 1)

    async def _mark(self, partition: Partition, field: str, mark: Mark) -> None:
        """Write a mark and wait until Redis has it, and the lease is surely held; cancelled where that is over."""
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
                self._connections.note_error_reply(partition.number, reason)
            self._wait(partition, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def _wait(self, partition: Partition, reason: str) -> None:
        # What follows the first word may name a script or a slot, and differ every time.
        if self._waiting_lines.due(partition.number, reason.partition(" ")[0]):
            _log.error(
                "a handler waits to be marked before it may start, trying again", partition=partition.number,
                reason=reason, repeats_of_all=self._waiting_lines.take_silent(),
            )  # fmt: skip
