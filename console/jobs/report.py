"""What a command says about jobs: the report at the end, and the list."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import msgspec
from rich import box
from rich.table import Table

from maskline.console.jobs.follow import NAMES
from maskline.console.output import printable, utc_time
from maskline.console.tables import print_table
from maskline.schemas.jobs import Job, JobKind, JobState, JobTotals, Selection

_NOUNS: Final = {
    "dead": "dead letters",
    "discard": "dead letters",
    "callbacks": "callbacks",
    "archive": "archived callbacks",
}
_NOTHING: Final = {
    "dead": "no dead letters were left",
    "discard": "no dead letters were left",
    "callbacks": "no handler takes these callbacks",
    "archive": "no handler takes these callbacks",
}
"""What a report says of a job that found nothing to do."""


_COLUMNS: Final = (
    *("id", "what", "selected by", "state", "ok", "failed", "parked", "gone", "under way", "started", "by"),
)


class JobRow(msgspec.Struct, frozen=True):
    """A job as listed and reported; `--json` prints exactly these fields."""

    id: str
    kind: JobKind
    state: JobState
    """`running` also while it waits for a worker. `stopped` and `failing` jobs begin nothing more."""
    ended: bool
    """Whether nothing of it is under way any more."""
    selected_by: str
    created_at: datetime | None
    by: str
    """Who started it, as `user@host`."""
    rate: float
    """Runs a second at most; 0 for no bound."""
    partitions_left: int
    """Partitions in which it has not ended."""
    selected: int
    """Runs taken on so far: one event for one handler each. The counts below are parts of it."""
    succeeded: int
    failed: int
    """Those that are dead letters again."""
    parked: int
    """Those that wait behind a dead letter of their session."""
    gone: int
    """Those whose handler no worker has any more."""
    discarded: int
    under_way: int


def row_of(job: Job, totals: JobTotals) -> JobRow:
    """The row of a job."""
    state = totals.state
    if not totals.ended and state == "running" and (job.stopped or job.failing):
        state = "stopped" if job.stopped else "failing"
    return JobRow(
        id=job.id,
        kind=job.kind,
        state=state,
        ended=totals.ended,
        selected_by=describe_selection(job.selection),
        created_at=utc_time(job.created_ms),
        by=job.by,
        rate=job.rate,
        partitions_left=totals.partitions_left,
        selected=totals.selected,
        succeeded=totals.succeeded,
        failed=totals.failed,
        parked=totals.parked,
        gone=totals.gone,
        discarded=totals.discarded,
        under_way=totals.under_way,
    )


def all_well(row: JobRow) -> bool:
    """Whether all that a job selected succeeded, or was discarded."""
    return row.state == "done" and not (row.failed or row.parked or row.gone)


def describe_selection(selection: Selection) -> str:
    """A selection as the options that select it."""
    times = {
        name: f"{utc_time(value):%Y-%m-%dT%H:%M:%SZ}"
        for name, value in (("since", selection.since_ms), ("until", selection.until_ms))
        if value is not None
    }
    texts = {
        name: value
        for name in ("handler", "event", "session", "group", "reason")
        if (value := getattr(selection, name)) is not None
    }
    parts = [f"--{name} {printable(value)}" for name, value in (texts | times).items()]
    if selection.ids:
        parts.insert(0, selection.ids[0] if len(selection.ids) == 1 else f"{len(selection.ids):,} ids")
    return " ".join(parts) or "--all"


def report_lines(row: JobRow) -> Iterator[str]:
    """The report of a job that has ended, or stopped itself, for a person."""
    name = NAMES[row.kind]
    counts = [
        f"{count:,} {words}"
        for count, words in (
            (row.succeeded, "succeeded"),
            (row.discarded, "discarded"),
            (row.failed, "failed again"),
            (row.parked, "still parked behind another dead letter of their session"),
            (row.gone, "left: no worker has their handler"),
            (row.under_way, "still tried, in their retry queues"),
        )
        if count
    ]
    how = {"done": "done", "stopped": "stopped", "failing": "stopped by itself, as most of it failed again"}
    yield f"{name} {row.id} {how.get(row.state, row.state)}: " + (", ".join(counts) or _NOTHING[row.kind])
    if row.failed:
        yield "what failed again is a dead letter again: maskline dead groups"


def print_jobs(rows: Sequence[JobRow]) -> None:
    """Print the list of jobs for a person."""
    if rows:
        table = Table(box=box.SIMPLE)
        for name in (
            "id",
            "what",
            "selected by",
            "state",
            "ok",
            "failed",
            "parked",
            "gone",
            "under way",
            "started",
            "by",
        ):
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(
                row.id,
                f"{NAMES[row.kind]} {_NOUNS[row.kind]}",
                row.selected_by,
                row.state if row.ended or row.state == "running" else f"{row.state}, ending",
                f"{row.succeeded + row.discarded:,}",
                f"{row.failed:,}",
                f"{row.parked:,}",
                f"{row.gone:,}",
                f"{row.under_way:,}",
                "" if row.created_at is None else f"{row.created_at:%Y-%m-%d %H:%M:%S}",
                printable(row.by),
            )
        print_table(table)
    else:
        print("no replays or discards")
