"""When ingest nodes held spooled callbacks of a partition, and how long its gaps wait for them. Pure.

Nodes say what they hold by spool notices (`schemas.spool_notices`). A missing number may be among it, so a gap whose
time is over is not given up while a node is known to hold some, and a SessionTimeout waits likewise.

| from | until | nothing is given up, as |
| --- | --- | --- |
| a node's first notice, less `held_ms` and NOTICE_DELAY_MS | its notice that it holds none | it holds some |
| | NOTICE_LIFE_MS after its last notice, if it never says so | it may be dead, or restarting |
| | SETTLE_MS after its first notice, at the least | other nodes may hold some as well, and not have said so yet |
| the loss of the worker's connection | SETTLE_MS after the next was opened | no node could say anything |
| MASKLINE_GAP_SPOOL_MS before a worker's first connection | SETTLE_MS after it | Redis may have been away just before |

Strategy: these times are intervals of the stream's time, known from Redis rather than from the moment of the look. So a
worker with an hour's backlog decides about a gap by what the nodes held when that gap ran out.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from maskline.schemas.spool_notices import NOTICE_LIFE_MS, SpoolNotice

SETTLE_MS: Final = 3_000
"""How long nodes may take to say what they hold after Redis was away. They try to connect every RECONNECT_MAX_S (2 s)
at the most; another second is for connecting and for the checks of the server."""

NOTICE_DELAY_MS: Final = 5_000
"""How much earlier than a notice says a node may have taken what it holds. The notice may have waited in front of a
Redis that stood still: a connection is given up after so long a silence. And a callback is spooled only once the
publish timeout is over."""

HOLDS_MAX: Final = 256
"""Intervals that are remembered, the latest. Each is an outage as one node saw it."""


class _Hold(NamedTuple):
    """An interval: what is due in it waits for its end."""

    since_ms: int
    until_ms: int
    gaps_only: bool = False
    """SessionTimeouts do not wait for it."""


class _Node(NamedTuple):
    """A node that holds spooled callbacks, as its notices say."""

    since_ms: int
    first_ms: int
    """When it first said so."""
    last_ms: int
    """When it last said so."""

    def hold(self, until_ms: int) -> _Hold:
        return _Hold(self.since_ms - NOTICE_DELAY_MS, max(until_ms, self.first_ms + SETTLE_MS))

    @property
    def lapses_ms(self) -> int:
        return self.last_ms + NOTICE_LIFE_MS


class _Union:
    """Intervals put together: those that overlap or touch are one."""

    __slots__ = ("_begins", "_ends")

    def __init__(self, holds: Iterable[_Hold], ahead_ms: int) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for hold in sorted(holds):
            until_ms = hold.until_ms + ahead_ms
            if self._ends and hold.since_ms <= self._ends[-1] + 1:
                self._ends[-1] = max(self._ends[-1], until_ms)
            else:
                self._begins.append(hold.since_ms)
                self._ends.append(until_ms)

    def first_outside_ms(self, at_ms: int) -> int:
        """The first time from `at_ms` on that is in none of them."""
        at = bisect_right(self._begins, at_ms) - 1
        return self._ends[at] + 1 if at >= 0 and at_ms <= self._ends[at] else at_ms


class SpoolHistory:
    """What is known of one partition. Times are in ms since the epoch, by the server's clock where nothing else is
    said.
    """

    __slots__ = ("_ahead_ms", "_nodes", "_past", "_unions", "incarnation", "last_id", "looked_ms")

    def __init__(self) -> None:
        self.incarnation: object = None
        """The incarnation of the connections that `last_id` was read over."""
        self.last_id = "0-0"
        """The ID of the last notice read."""
        self.looked_ms = 0
        """The stream's time at the last look for notices."""
        self._ahead_ms = 0
        self._nodes: dict[str, _Node] = {}
        self._past: set[_Hold] = set()
        """Intervals whose end is known."""
        self._unions: tuple[_Union, _Union] | None = None
        """For gaps, and for SessionTimeouts; None if they must be put together anew."""

    @property
    def empty(self) -> bool:
        """Nothing has to wait for any spool."""
        return not self._nodes and not self._past

    def restart(self, incarnation: object) -> None:
        """Read all notices again: over new connections, as the server may be another one."""
        self.incarnation = incarnation
        self.last_id = "0-0"
        self._nodes.clear()
        self._unions = None

    def run_ahead(self, ahead_ms: int) -> None:
        """Note how far the stream's time is ahead of the server's clock (`Partition.stream_now_ms`)."""
        if ahead_ms != self._ahead_ms:
            self._ahead_ms = ahead_ms
            self._unions = None

    def add(self, notices: Iterable[SpoolNotice]) -> None:
        """Take in the notices since the last look, in their order."""
        for notice in notices:
            node = self._nodes.pop(notice.node, None)
            if node is not None and notice.at_ms > node.lapses_ms:
                self._remember(node.hold(node.lapses_ms))
                node = None
            if notice.held_ms is None:
                if node is not None:
                    self._remember(node.hold(notice.at_ms))
                continue
            since_ms = notice.at_ms - notice.held_ms
            if node is None:
                self._nodes[notice.node] = _Node(since_ms, notice.at_ms, notice.at_ms)
            else:
                self._nodes[notice.node] = _Node(min(since_ms, node.since_ms), node.first_ms, notice.at_ms)
            self._unions = None

    def away(self, since_ms: int, until_ms: int) -> None:
        """Redis was away from the worker: between these times nodes could say nothing."""
        self._remember(_Hold(since_ms, until_ms + SETTLE_MS))

    def started(self, at_ms: int, gap_timeout_ms: int, gap_spool_ms: int) -> None:
        """A worker's first connection was opened at `at_ms`: it does not know whether Redis was away before.

        Gaps that stood then wait; later ones do not, nor do SessionTimeouts: those of a long backlog would all be held.
        """
        until_ms = at_ms + min(SETTLE_MS, gap_timeout_ms)
        self._remember(_Hold(at_ms - gap_spool_ms, until_ms, gaps_only=True))

    def holders(self, at_ms: int) -> list[str]:
        """The nodes that are known to hold spooled callbacks at the stream's time `at_ms`, for the log."""
        at_ms -= self._ahead_ms
        return [name for name, node in self._nodes.items() if node.since_ms <= at_ms <= node.lapses_ms]

    def gap_waits_until_ms(self, due_ms: int) -> int:
        """When a gap whose time is over at `due_ms` may be given up, by the stream's time.

        That is `due_ms`, or later if a node may hold what is missing. It never falls as `due_ms` rises.
        """
        return due_ms if self.empty else self._put_together()[0].first_outside_ms(due_ms)

    def timeout_waits_until_ms(self, arrived_ms: int) -> int:
        """When a SessionTimeout that arrived at `arrived_ms` may be released, by the stream's time.

        That is `arrived_ms`, or later if a node may hold an event of its session. It never falls as `arrived_ms` rises.
        """
        return arrived_ms if self.empty else self._put_together()[1].first_outside_ms(arrived_ms)

    def _put_together(self) -> tuple[_Union, _Union]:
        if self._unions is None:
            holds = {*self._past, *(node.hold(node.lapses_ms) for node in self._nodes.values())}
            for_timeouts = (hold for hold in holds if not hold.gaps_only)
            self._unions = _Union(holds, self._ahead_ms), _Union(for_timeouts, self._ahead_ms)
        return self._unions

    def _remember(self, hold: _Hold) -> None:
        self._past.add(hold)
        if len(self._past) > HOLDS_MAX:
            self._past.remove(min(self._past, key=_end_of))
        self._unions = None


def _end_of(hold: _Hold) -> int:
    return hold.until_ms
