"""Keeps the deadlines at which the gaps of a partition's sessions are given up, the earliest first. Pure.

A session's deadline moves whenever its waiting arrivals change, and most gaps close before it. So an old deadline stays
in the heap: it is stale if `LiveSession.gap_ends_ms` differs, and is dropped when it comes up.
"""

import heapq
from collections.abc import Mapping
from typing import Final

from maskline.worker.partitions.session import LiveSession

STALE_MAX: Final = 64
"""Stale deadlines, beside as many as there are live ones, before all stale ones are dropped: else those of closed gaps
would stay until their time comes, which may be hours."""


class GapDeadlines:
    """Deadlines by the stream's time, in milliseconds. `sessions`: the partition's in memory, by SessionUUID."""

    def __init__(self, sessions: Mapping[str, LiveSession]) -> None:
        self._sessions = sessions
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
