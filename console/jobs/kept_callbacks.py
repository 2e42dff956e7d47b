"""What a replay of kept callbacks would do, found out by scanning the streams; and what is not kept any more.

A callback is kept once it was handled, until retention trims it. What no worker has finished yet is no replay's: it
will be handled anyway. Only counts are kept in memory.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from maskline.console.jobs.records import checked
from maskline.console.known_handlers import read_known_handlers, require_known
from maskline.console.output import counted, printable, utc_time
from maskline.console.redis_reader import RedisReader, entry_order, query_for
from maskline.schemas.decode import SEQUENCE_NUMBER_MAX
from maskline.schemas.emission import OtherGroupsSummary
from maskline.schemas.jobs import Selection
from maskline.schemas.keys import partition_of
from maskline.worker.entries.decode import entry_decoder, entry_ms
from maskline.worker.ordering.reorder import Arrival

PAGE_ENTRIES: Final = 500
"""Entries read in one round trip: half a megabyte of ordinary callbacks, 32 MB of the largest."""

PENDING_PAGE: Final = 10_000
"""IDs of unfinished entries read in one round trip."""

CLOCK_SKEW_MAX_MS: Final = 600_000
"""How far the clock of an ingest node, which dates callbacks, may be ahead of Redis's, which makes entry IDs: entries
older than that before `--since` are not read."""

SESSIONS_HELD_MAX: Final = 200_000
"""Sessions kept to count each once, some 30 MB; from then on their number is a lower bound."""


EVENT_NAMES_MAX: Final = 100
OTHER_EVENTS: Final = "others"
"""Names of events that are counted each; Plivo has some twenty."""


class CallbackReport(msgspec.Struct):
    """The callbacks that are selected; `--json` prints these fields."""

    callbacks: int = 0
    """Handled ones."""
    sessions: int = 0
    sessions_exact: bool = True
    """Whether `sessions` is their number; otherwise there are at least so many."""
    events: dict[str, int] = {}
    """How many of each event."""
    handlers: list[str] | None = None
    """The handlers of the group, of which those of each event are called; None if no worker ever said which it has."""
    unfinished: int = 0
    """Selected ones that workers have not finished: they are handled in any case, so they are not replayed."""
    partitions: int = 0
    """Partitions that were looked at."""
    trimmed_partitions: int = 0
    """Those of them where callbacks of the selected time may have been trimmed."""
    kept_since: datetime | None = None
    """From this time on callbacks are kept in all of them; null if nothing was trimmed."""
    first_kept_number: int | None = None
    """With `--session` alone: the lowest number of its events that are kept, if that is not the first of a session."""


class CallbackPlan:
    """A `jobs.start.Plan` about kept callbacks."""

    def __init__(self, selection: Selection) -> None:
        self.ends: dict[int, str] = {}
        self.report = CallbackReport()
        self._selection = selection
        self._events: Counter[str] = Counter()
        self._sessions: set[str] = set()
        self._lowest_number = SEQUENCE_NUMBER_MAX
        self._kept_since_ms = 0

    def add(self, arrival: Arrival, *, finished: bool) -> bool:
        """Count a callback if it is selected, and return whether it is. `finished`: every worker is done with it."""
        entry, selection, report = arrival.payload, self._selection, self.report
        event = entry.event
        if selection.session not in (None, event.session_uuid) or isinstance(event, OtherGroupsSummary):
            return False
        if arrival.number is not None and not arrival.recording:
            self._lowest_number = min(arrival.number, self._lowest_number)
        if selection.event not in (None, event.event_name) or not selection.matches_time(
            entry.received_at_ms
        ):
            return False
        if not finished:
            report.unfinished += 1
            return False
        report.callbacks += 1
        known = event.event_name in self._events or len(self._events) < EVENT_NAMES_MAX
        self._events[event.event_name if known else OTHER_EVENTS] += 1
        if event.session_uuid not in self._sessions:
            if len(self._sessions) < SESSIONS_HELD_MAX:
                self._sessions.add(event.session_uuid)
            else:
                report.sessions_exact = False
        return True

    def partition_read(self, kept_since_ms: int | None) -> None:
        """A partition was looked at. `kept_since_ms`: its oldest entry, if older ones were trimmed."""
        self.report.partitions += 1
        if kept_since_ms is not None and kept_since_ms > (self._selection.since_ms or 0):
            self.report.trimmed_partitions += 1
            self._kept_since_ms = max(self._kept_since_ms, kept_since_ms)

    def finish(self, handlers: set[str] | None, first_sequence: int) -> None:
        """Complete the plan. `handlers`: those that the workers have; `first_sequence`: opens a session."""
        report = self.report
        report.sessions = len(self._sessions)
        report.events = dict(self._events.most_common())
        wanted = self._selection.handler
        report.handlers = (
            None if handlers is None else sorted(handlers if wanted is None else {wanted} & handlers)
        )
        report.kept_since = utc_time(self._kept_since_ms) if self._kept_since_ms else None
        # With `--since` the scan begins there, and says nothing about what is kept from before.
        if self._selection.session is not None and self._selection.since_ms is None and report.callbacks:
            lowest = self._lowest_number
            report.first_kept_number = lowest if first_sequence < lowest < SEQUENCE_NUMBER_MAX else None

    @property
    def runs(self) -> int:
        """The callbacks: a handler each at least, unless no handler takes them."""
        return self.report.callbacks

    @property
    def problem(self) -> bool:
        """Never: what is not kept any more was said."""
        return False

    def as_json(self) -> Any:
        """The plan for a program."""
        return self.report

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        report = self.report
        if report.kept_since is not None:
            yield (
                f"in {report.trimmed_partitions:,} of {report.partitions:,} partitions callbacks from before "
                f"{report.kept_since:%Y-%m-%d %H:%M:%S} UTC are not kept any more (MASKLINE_RETENTION_S, "
                "MASKLINE_RETENTION_MAX_ENTRIES)"
            )
        if report.first_kept_number is not None:
            yield f"the first number of the session that is kept is {report.first_kept_number:,}"
        if report.unfinished:
            yield f"{report.unfinished:,} more are not handled yet: they will be anyway, and are not replayed"
        if not report.callbacks:
            yield "no callback is selected"
            return
        sessions = ("" if report.sessions_exact else "at least ") + counted(report.sessions, "session")
        yield f"run {counted(report.callbacks, 'callback')} of {sessions} again, in order"
        for event, count in report.events.items():
            yield f"  {printable(event)}: {count:,}"
        if report.handlers is None:
            yield "no worker has said yet which handlers there are"
        else:
            yield f"for those of these handlers that take them: {', '.join(map(printable, report.handlers)) or 'none'}"


async def look_at_callbacks(reader: RedisReader, selection: Selection) -> CallbackPlan:
    """Scan the streams for the selected callbacks. Raises ConfigError for a handler that no worker has."""
    handlers = await read_known_handlers(reader)
    if selection.handler is not None and handlers is not None:
        require_known(selection.handler, handlers, "replay")
    plan = CallbackPlan(selection)
    partitions: Sequence[int] = range(reader.partitions)
    if selection.session is not None:
        partitions = [partition_of(selection.session, reader.partitions)]
    for partition in partitions:
        await _scan(reader, partition, selection, plan)
    plan.finish(handlers, reader.settings.first_sequence)
    return plan


class _Stream(NamedTuple):
    """What the server says of a partition's stream."""

    kept_since_ms: int | None
    """The time of its oldest entry, if older ones were trimmed."""
    cursor: tuple[int, int] | None
    """The last entry that the group has read; None if it has not begun."""


async def _read_stream(reader: RedisReader, stream: str, group: str) -> _Stream | None:
    """None if the partition has no stream yet."""
    info, groups = await reader.send(
        [query_for(stream, "XINFO", "STREAM", stream), query_for(stream, "XINFO", "GROUPS", stream)]
    )
    if isinstance(info, hiredis.ReplyError) and "no such key" in str(info):
        return None
    checked([info, groups])
    facts = _pairs(info)
    first = facts[b"first-entry"]
    trimmed = first is not None and facts.get(b"entries-added", 0) > facts[b"length"]
    cursors = {it[b"name"].decode(): it[b"last-delivered-id"].decode() for it in map(_pairs, groups)}
    return _Stream(
        entry_ms(first[0].decode()) if trimmed else None,
        entry_order(cursors[group]) if group in cursors else None,
    )


async def _scan(reader: RedisReader, partition: int, selection: Selection, plan: CallbackPlan) -> None:
    """Count the selected callbacks of a partition."""
    name, group = reader.keys.callbacks(partition), reader.keys.group
    stream = await _read_stream(reader, name, group)
    plan.partition_read(None if stream is None else stream.kept_since_ms)
    if stream is None or stream.cursor is None:
        return
    unfinished = await _read_pending(reader, name, group)
    decode = entry_decoder(group=group).decode
    start, last, selected_any, at_end = _first_id(selection), "", False, False
    while not at_end:
        query = query_for(name, "XRANGE", name, start, "+", "COUNT", PAGE_ENTRIES)
        (entries,) = checked(await reader.send([query]))
        _, arrivals, _, _ = decode(entries, False, {})
        for arrival in arrivals:
            entry_id = arrival.payload.entry_id
            finished = entry_id not in unfinished and entry_order(entry_id) <= stream.cursor
            selected_any |= plan.add(arrival, finished=finished)
        at_end = len(entries) < PAGE_ENTRIES
        if entries:
            last = entries[-1][0].decode()
            start = f"({last}"
    if selected_any:
        plan.ends[partition] = last


def _first_id(selection: Selection) -> str:
    return f"{max((selection.since_ms or 0) - CLOCK_SKEW_MAX_MS, 0)}-0"


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """Names and values in turn, as XINFO returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def _read_pending(reader: RedisReader, stream: str, group: str) -> set[str]:
    """The entries that the group has read and not finished: as many as its workers hold at most."""
    found: set[str] = set()
    start = "-"
    while True:
        (reply,) = checked(
            await reader.send([query_for(stream, "XPENDING", stream, group, start, "+", PENDING_PAGE)])
        )
        found.update(entry[0].decode() for entry in reply)
        if len(reply) < PENDING_PAGE:
            return found
        start = f"({reply[-1][0].decode()}"
