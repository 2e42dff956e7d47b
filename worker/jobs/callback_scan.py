"""Carries out a job about kept callbacks in one partition: runs a session's selected events again, session by session.

The stretch of the stream that the job covers is worked on in windows (`worker.jobs.session_spans`). A session's runs go
to the ends of its handlers' retry queues by one commit, which moves the job's cursor as well. Live events of the
session wait behind them, so that both are in order and never mixed. What waits in a retry queue as it is, or is the
dead letter that the queue waits behind, is left out: it has not been handled yet.

Only handled callbacks run again: a window ends before the group's cursor, and is not begun before all of its entries
are done. Which sessions it has does not depend on time, then, but on the stream alone, and a worker that takes over
finds the same ones.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from maskline.worker.entries.entry import entry_id_at, entry_position
from maskline.worker.jobs.job_run import JobRun
from maskline.worker.jobs.session_replay import is_selected
from maskline.worker.jobs.session_runs import decoded, replay_session, wait_handled
from maskline.worker.jobs.session_spans import WINDOW_ENTRIES_MAX, Batch, SessionSpans
from maskline.worker.jobs.stream_pages import StreamPages
from maskline.worker.ordering.reorder import Arrival

CLOCK_SKEW_MS: Final = 60_000
"""How far an ingest node's clock may be ahead of Redis's: entries older than the selected time by more are not read."""


async def carry_out_callbacks(run: JobRun) -> None:
    """Run the selected callbacks again from the job's cursor on, until its end.

    Raises JobInactiveError, and RedisUnavailableError: it goes on from the record when it is called again.
    """
    while (window := await _open_window(run)) is not None:
        spans, last = window
        for batch in spans.batches(entry_position(run.record.cursor)):
            arrivals = await _gather(run, batch)
            for session, at in zip(batch.sessions, batch.lasts, strict=True):
                await replay_session(run, session, arrivals.get(session, ()), at)
        run.update(replace(run.record, cursor=last, window=None))
    run.update(replace(run.record, scanned=True))


async def _open_window(run: JobRun) -> tuple[SessionSpans, str] | None:
    """The sessions of the window under way, or of the next one, and its last entry; None if there is none any more."""
    record, partition = run.record, run.partition
    if record.window is not None:
        return await _read_spans(run, *record.window)
    after = record.cursor
    since_ms = run.job.selection.since_ms
    if since_ms is not None:
        after = max(after, f"{max(since_ms - CLOCK_SKEW_MS, 0)}-0", key=entry_position)
    last = min(record.end, partition.cursor, key=entry_position)
    if entry_position(after) >= entry_position(last):
        return None
    await wait_handled(run, last)
    spans, last = await _read_spans(run, after, last)
    run.update(replace(run.record, window=(after, last), cursor=after))
    return spans, last


async def _read_spans(run: JobRun, after: str, last: str) -> tuple[SessionSpans, str]:
    """The sessions of a window, and its last entry: `last`, or the one before that makes it large enough."""
    spans, read = SessionSpans(), 0
    pages = _pages(run, f"({after}", last)
    while not pages.at_end:
        entries = await pages.next()
        run.require_active()
        for arrival in decoded(run, entries):
            entry = arrival.payload
            selected = is_selected(entry, run.job.selection)
            spans.add(entry.event.session_uuid, entry_position(entry.entry_id), selected=selected)
        read += len(entries)
        if read >= WINDOW_ENTRIES_MAX:
            return spans, entries[-1][0].decode()
    return spans, last


async def _gather(run: JobRun, batch: Batch) -> Mapping[str, Sequence[Arrival]]:
    """The kept events of the sessions of a batch, in the order of the stream."""
    wanted = {*batch.sessions}
    gathered: defaultdict[str, list[Arrival]] = defaultdict(list)
    pages = _pages(run, entry_id_at(batch.first), entry_id_at(batch.lasts[-1]))
    while not pages.at_end:
        entries = await pages.next()
        run.require_active()
        for arrival in decoded(run, entries):
            if (session := arrival.payload.event.session_uuid) in wanted:
                gathered[session].append(arrival)
    return gathered


def _pages(run: JobRun, first: str, last: str) -> StreamPages:
    stream = run.tools.keys.callbacks(run.partition.number)
    return StreamPages(run.tools.connections, run.partition, stream, first=first, last=last)
