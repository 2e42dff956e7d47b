"""Keeps the deadlines at which the gaps of a partition's sessions are given up, the earliest first. Pure.

A gap whose deadline has passed waits on while an ingest node is known to hold spooled callbacks of the partition
(`worker.ordering.spool_history`). That is looked up in Redis before any gap is given up, and again every LOOK_AGAIN_MS
while gaps wait on. A later deadline never waits for less, so the earliest decides for all.

A session's deadline moves whenever its waiting arrivals change, and most gaps close before it. So an old deadline stays
in the heap: it is stale if `LiveSession.gap_ends_ms` differs, and is dropped when it comes up.
"""

import heapq
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final

from maskline.worker.ordering.reorder import Arrival, Policy
from maskline.worker.ordering.spool_history import SpoolHistory
from maskline.worker.partitions.session import LiveSession

STALE_MAX: Final = 64
"""Stale deadlines, beside as many as there are live ones, before all stale ones are dropped: else those of closed gaps
would stay until their time comes, which may be hours."""

LOOK_AGAIN_MS: Final = 250
"""Between two looks for spool notices while gaps wait for spools: how late it is noticed that a spool is drained."""

_ends_session = attrgetter("ends_session")


class GapDeadlines:
    """Deadlines by the stream's time, in milliseconds. `sessions`: the partition's in memory, by SessionUUID."""

    def __init__(self, sessions: Mapping[str, LiveSession], policy: Policy) -> None:
        self._sessions = sessions
        self._policy = policy
        self.spools = SpoolHistory()
        self._heap: list[tuple[int, str]] = []
        self._size_max = STALE_MAX

    def __len__(self) -> int:
        """How many there are, stale ones included."""
        return len(self._heap)

    def add(self, deadline_ms: int, session_uuid: str) -> None:
        """Add a deadline, which is the session's `gap_ends_ms` now."""
        heapq.heappush(self._heap, (deadline_ms, session_uuid))
        if len(self._heap) > self._size_max:
            self._drop_stale()

    @property
    def next_look_ms(self) -> int | None:
        """When there is something to do: a deadline passes, or it is time to look again; None if no session waits."""
        due_ms, looked_ms = self.next_ms, self.spools.looked_ms
        if due_ms is None or due_ms > looked_ms:
            return due_ms
        return min(self._ends_ms(), looked_ms + LOOK_AGAIN_MS)

    def expired(self, watermark_ms: int) -> bool:
        """Whether the gap with the earliest deadline is to be given up at this watermark."""
        due_ms = self.next_ms
        return due_ms is not None and due_ms <= watermark_ms and self._ends_ms() <= watermark_ms

    @property
    def outlasted_by_spools(self) -> bool:
        """Whether that gap has waited as long as it may for spools, and a node still holds callbacks."""
        due_ms, spool_ms = self.next_ms, self._policy.gap_spool_ms
        return due_ms is not None and self._ends_ms() - due_ms >= spool_ms > 0

    def must_look(self, arrivals: Sequence[Arrival], before_ms: int, watermark_ms: int) -> bool:
        """Whether spool notices must be known to order a batch.

        `before_ms`: the watermark before it, or before an earlier batch that is not ordered yet. `watermark_ms`: the
        watermark after it.
        """
        if not self._policy.gap_spool_ms:
            return False
        look_ms = self.next_look_ms
        if look_ms is not None and look_ms <= watermark_ms:
            return True
        # A gap may begin and run out within the batch.
        return watermark_ms - before_ms >= self._policy.gap_timeout_ms or True in map(_ends_session, arrivals)

    def reconnected(self, incarnation: object, lost_ms: int | None, opened_ms: int | None) -> None:
        """Read all spool notices again, as the connections to the server are new ones.

        `lost_ms`, `opened_ms`: when the last ones were lost and these were opened, by the server's clock; None for
        `lost_ms` if these are the first, for `opened_ms` if the server does not tell its time.
        """
        self.spools.restart(incarnation)
        if opened_ms is not None and lost_ms is not None:
            self.spools.away(lost_ms, opened_ms)
        elif opened_ms is not None:
            self.spools.started(opened_ms, self._policy.gap_timeout_ms, self._policy.gap_spool_ms)

    @property
    def any_waits_for_spools(self) -> bool:
        """Whether any session has outstayed its deadline, and waits for spools."""
        due_ms = self.next_ms
        return due_ms is not None and due_ms <= self.spools.looked_ms

    def count_waiting_for_spools(self) -> int:
        """How many sessions do."""
        looked_ms, sessions = self.spools.looked_ms, self._sessions
        return sum(
            due_ms <= looked_ms
            and (session := sessions.get(uuid)) is not None
            and session.gap_ends_ms == due_ms
            for due_ms, uuid in [*self._heap]
        )

    def waiting_sessions(self) -> list[LiveSession]:
        """The sessions with arrivals that wait, in the order of their last use."""
        return [session for session in self._sessions.values() if session.waiting]

    @property
    def next_ms(self) -> int | None:
        """The earliest deadline; None if no session waits."""
        while self._heap:
            deadline_ms, uuid = self._heap[0]
            session = self._sessions.get(uuid)
            if session is not None and session.gap_ends_ms == deadline_ms:
                return deadline_ms
            heapq.heappop(self._heap)
        return None

    def pop(self) -> LiveSession:
        """Remove the earliest deadline, and return its session. Call it only if `next_ms` is not None."""
        session = self._sessions[heapq.heappop(self._heap)[1]]
        session.gap_ends_ms = None
        return session

    def _ends_ms(self) -> int:
        """When the gap with the earliest deadline is given up; to be called only if `next_ms` is not None."""
        return self._sessions[self._heap[0][1]].ends_ms(self._policy, self.spools)

    def _drop_stale(self) -> None:
        self._heap = list(
            {
                (session.gap_ends_ms, uuid)
                for uuid, session in self._sessions.items()
                if session.gap_ends_ms is not None
            }
        )
        heapq.heapify(self._heap)
        self._size_max = 2 * len(self._heap) + STALE_MAX
