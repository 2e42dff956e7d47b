"""What a replay from an archive would do, found out by reading it: its callbacks are sorted by session meanwhile."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.console import Console

from maskline.console.jobs.archive.session_sort import SessionSort
from maskline.console.known_handlers import read_known_handlers, require_known
from maskline.console.output import counted, note, printable, shortened, utc_time
from maskline.console.redis_reader import RedisReader
from maskline.handlers.segments.names import SegmentName, TimeRange
from maskline.handlers.segments.reader import ArchiveReader, SegmentFile
from maskline.handlers.segments.stores import open_store
from maskline.schemas.callback import CALLBACK_FIELD, encode_callback
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.jobs import Selection
from maskline.schemas.keys import partition_of
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.jobs.session_replay import is_selected
from maskline.worker.ordering.reorder import Arrival

READ_MARGIN_MS: Final = 600_000
"""How much before `--since` and after `--until` is read as well. What came so shortly before and after decides on the
order of the selected callbacks, and clocks of ingest nodes and of archiving workers may differ by as much."""

NAMED_FILES_MAX: Final = 20
"""Files that a plan names; of more it says how many."""

EVENT_NAMES_MAX: Final = 100
OTHER_EVENTS: Final = "others"

PLAIN_PROGRESS_S: Final = 5.0
"""Between two lines of progress if stderr is no terminal."""


class PassedOver(msgspec.Struct, frozen=True):
    """A file of the archive that was not read."""

    path: str
    problem: str


class ArchiveReport(msgspec.Struct):
    """The callbacks of an archive that are selected; `--json` prints these fields."""

    callbacks: int = 0
    sessions: int = 0
    events: dict[str, int] = {}
    """How many of each event."""
    handlers: list[str] | None = None
    """The handlers of the group, of which those of each event are called; None if no worker ever said which it has."""
    segments: int = 0
    """Segments that were read."""
    first_received_at: datetime | None = None
    last_received_at: datetime | None = None
    """Of the selected callbacks."""
    repeated: int = 0
    """Callbacks that were found again, as a worker died before it could commit; each is run once."""
    undecodable: int = 0
    """Callbacks that this release cannot decode: they are left out."""
    tokens: int = 0
    """Segments whose phone numbers are tokens."""
    passed_over: int = 0
    """Files that are no whole segments."""
    passed_over_files: list[PassedOver] = []
    """The first of them."""


class ArchivePlan:
    """A `jobs.start.Plan` about the callbacks of an archive."""

    def __init__(self, selection: Selection, sort: SessionSort) -> None:
        self.ends: Mapping[int, str] = {}
        self.report = ArchiveReport()
        self.sort = sort
        self._selection = selection
        self._events: Counter[str] = Counter()
        self._first_ms = self._last_ms = 0

    def add_file(self, file: SegmentFile, partitions: int) -> None:
        """Count what a file has, and sort it. `partitions`: of the installation that is to run it."""
        report = self.report
        if file.problem:
            report.passed_over += 1
            if len(report.passed_over_files) < NAMED_FILES_MAX:
                report.passed_over_files.append(PassedOver(file.path, file.problem))
            return
        report.segments += 1
        report.tokens += file.tokens
        decode = entry_decoder().arrival_of
        for record in file.records:
            value = encode_callback(record.callback)
            try:
                arrival = decode(record.entry_id, (CALLBACK_FIELD, value), False)
            except (UndecodableEntryError, ValueError):
                report.undecodable += 1
                continue
            self._add(arrival, value, partitions, tokens=file.tokens)

    def _add(self, arrival: Arrival, value: bytes, partitions: int, *, tokens: bool) -> None:
        entry, selection = arrival.payload, self._selection
        event, received_ms = entry.event, entry.received_at_ms
        if selection.session not in (None, event.session_uuid) or not _near(selection, received_ms):
            return
        uuid = event.session_uuid
        selected = is_selected(entry, selection)
        partition = partition_of(uuid, partitions)
        added = self.sort.add(
            uuid,
            partition,
            entry.entry_id,
            value,
            selected=selected,
            # The same with tokens as with numbers: a group may have archived either, and another one the other.
            identity=f"{received_ms} {event.event_name} {arrival.number} {arrival.timestamp_us}",
            tokens=tokens,
        )
        if added and selected:
            self.report.callbacks += 1
            known = event.event_name in self._events or len(self._events) < EVENT_NAMES_MAX
            self._events[event.event_name if known else OTHER_EVENTS] += 1
            self._first_ms = min(self._first_ms or received_ms, received_ms)
            self._last_ms = max(self._last_ms, received_ms)

    def finish(self, handlers: set[str] | None) -> None:
        """Complete the plan. `handlers`: those that the workers have."""
        report, wanted = self.report, self._selection.handler
        report.sessions = self.sort.selected_sessions()
        report.repeated = self.sort.repeated
        report.events = dict(self._events.most_common())
        report.handlers = (
            None if handlers is None else sorted(handlers if wanted is None else {wanted} & handlers)
        )
        if report.callbacks:
            report.first_received_at = utc_time(self._first_ms)
            report.last_received_at = utc_time(self._last_ms)
        self.ends = dict.fromkeys(self.sort.partitions(), "0-0")

    @property
    def runs(self) -> int:
        """The callbacks: a handler each at least, unless no handler takes them."""
        return self.report.callbacks

    @property
    def problem(self) -> bool:
        """Whether the archive has files that are no whole segments: what they had is not run."""
        return bool(self.report.passed_over)

    def as_json(self) -> Any:
        """The plan for a program."""
        return self.report

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        report = self.report
        for file in report.passed_over_files:
            yield f"passed over: {shortened(file.path, 200)}: {printable(file.problem)}"
        if more := report.passed_over - len(report.passed_over_files):
            yield f"and {counted(more, 'more file')} that are no whole segments"
        if report.undecodable:
            yield f"{counted(report.undecodable, 'callback')} cannot be decoded, and are left out"
        if report.repeated:
            yield f"{counted(report.repeated, 'callback')} were found twice, and are run once"
        if not report.callbacks:
            yield f"no callback is selected in {counted(report.segments, 'segment')}"
            if not report.segments:
                yield "an archive is the folder, or the prefix in a bucket, that has a folder for each year"
            return
        if report.tokens:
            yield "phone numbers are tokens there: handlers get those, and other idempotency keys than before"
        yield (
            f"run {counted(report.callbacks, 'callback')} of {counted(report.sessions, 'session')} again, in order"
        )
        if report.first_received_at and report.last_received_at:
            yield (
                f"received from {report.first_received_at:%Y-%m-%d %H:%M:%S} "
                f"to {report.last_received_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        for event, count in report.events.items():
            yield f"  {printable(event)}: {count:,}"
        if report.handlers is None:
            yield "no worker has said yet which handlers there are"
        else:
            yield f"for those of these handlers that take them: {', '.join(map(printable, report.handlers)) or 'none'}"


async def look_at_archive(
    reader: RedisReader, url: str, selection: Selection, sort: SessionSort
) -> ArchivePlan:
    """Read an archive, and sort what is selected. `url`: a folder, or the URL of an object store.

    Raises ConfigError for a handler that no worker has, for an archive that is not there, and for a wrong key;
    ArchiveError where its store fails.
    """
    handlers = await read_known_handlers(reader)
    if selection.handler is not None and handlers is not None:
        require_known(selection.handler, handlers, "replay")
    archive = ArchiveReader(open_store(url, write=False), reader.settings.archive_key)
    plan = ArchivePlan(selection, sort)
    since_ms, until_ms = selection.since_ms, selection.until_ms
    wanted = TimeRange(
        None if since_ms is None else since_ms - READ_MARGIN_MS,
        None if until_ms is None else until_ms + READ_MARGIN_MS,
    )
    with _progress() as show:
        async for path in archive.paths(wanted):
            plan.add_file(await archive.read(path), reader.partitions)
            show(path, plan)
    plan.finish(handlers)
    return plan


def _near(selection: Selection, received_ms: int) -> bool:
    since_ms, until_ms = selection.since_ms, selection.until_ms
    return (since_ms is None or received_ms >= since_ms - READ_MARGIN_MS) and (
        until_ms is None or received_ms < until_ms + READ_MARGIN_MS
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, ArchivePlan], None]]:
    """Shows how far the reading is, each time the function that it yields is called with a file that was read."""

    def line(path: str, plan: ArchivePlan) -> str:
        name = SegmentName.read(path)
        at = "" if name is None else f", up to {utc_time(name.closed_ms):%Y-%m-%d %H:%M:%S} UTC"
        found = counted(plan.sort.callbacks, "callback")
        return f"reading the archive: {found} in {counted(plan.report.segments, 'segment')}{at}"

    if sys.stderr is not None and sys.stderr.isatty():
        with Console(file=sys.stderr).status("reading the archive") as status:
            yield lambda path, plan: status.update(line(path, plan))
        return
    told_at = time.monotonic()

    def tell(path: str, plan: ArchivePlan) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= PLAIN_PROGRESS_S:
            told_at = time.monotonic()
            note(line(path, plan))

    yield tell
