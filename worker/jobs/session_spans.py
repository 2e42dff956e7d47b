"""Which sessions a job of kept callbacks runs again, and where in the stream each of them lies. Pure.

A job goes over a stretch of the stream, a *window*, in two passes. The first notes of each session where its first and
its last entry are, and whether any of its events is selected. The second gathers the sessions a few at a time, in the
order of their last entries, so that each can be put in order from all that is kept of it.

Why by the last entry: the job's cursor is the last entry of the last session that was dealt with. A worker that takes
over after a crash makes the first pass again; a session with an entry beyond the cursor has its last entry there as
well, so it was not dealt with. That is so even if retention has trimmed the beginning of the window meanwhile.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from maskline.worker.entries.entry import EntryPosition

WINDOW_ENTRIES_MAX: Final = 20_000
"""Entries of a window: more than a partition keeps by default (MASKLINE_RETENTION_MAX_ENTRIES over 64 partitions), so
that a session is cut in two only in larger streams. It bounds the sessions noted, at some 300 bytes each."""

BATCH_ENTRIES_MAX: Final = 1_000
"""Entries of the sessions gathered at a time: a few MB. A session with more is gathered alone."""


class Span(NamedTuple):
    """Where a session's entries lie in the window, those that are not selected included."""

    first: EntryPosition
    last: EntryPosition
    entries: int
    selected: bool
    """At least one of its events is selected."""


class Batch(NamedTuple):
    """Sessions that are gathered together."""

    sessions: tuple[str, ...]
    """Their SessionUUIDs, by their last entries."""
    lasts: tuple[EntryPosition, ...]
    """The last entry of each."""
    first: EntryPosition
    """The earliest entry of any of them."""


class SessionSpans:
    """The sessions of a window."""

    def __init__(self) -> None:
        self._spans: dict[str, Span] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, session: str, at: EntryPosition, *, selected: bool) -> None:
        """Note an entry of the window; they come in the order of the stream."""
        span = self._spans.get(session)
        if span is None:
            self._spans[session] = Span(at, at, 1, selected)
        else:
            self._spans[session] = Span(span.first, at, span.entries + 1, span.selected or selected)

    def batches(self, cursor: EntryPosition) -> Iterator[Batch]:
        """The sessions with a selected event that end after the cursor, in batches, by their last entries."""
        spans = sorted(
            (span.last, session, span)
            for session, span in self._spans.items()
            if span.selected and span.last > cursor
        )
        gathered: list[tuple[EntryPosition, str, Span]] = []
        entries = 0
        for last, session, span in spans:
            if gathered and entries + span.entries > BATCH_ENTRIES_MAX:
                yield _batch(gathered)
                gathered, entries = [], 0
            gathered.append((last, session, span))
            entries += span.entries
        if gathered:
            yield _batch(gathered)


def _batch(gathered: list[tuple[EntryPosition, str, Span]]) -> Batch:
    return Batch(
        tuple(session for _, session, _ in gathered),
        tuple(last for last, _, _ in gathered),
        min(span.first for _, _, span in gathered),
    )
