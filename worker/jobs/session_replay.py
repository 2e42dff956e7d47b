"""Puts the kept callbacks of a session in order once more, and says which of them run again for which handlers. Pure.

Rules: they go through the same order as they did when they came (`worker.ordering`), with two differences. All of them
are at hand, so a number may be late by as much as a live event waits at most: for a missing number, and for an ingest
node that holds spooled callbacks. And the lowest number that is kept of a session's first run opens
it: what came before was trimmed, and is no gap. The order is worked out over all events of the session, and only then
those that are not selected are left out, so that they are no gaps either.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from maskline.schemas.call_summary import Handled
from maskline.schemas.jobs import Selection
from maskline.worker.entries.entry import Entry
from maskline.worker.entries.queue_item import ITEM_VERSION, QueueItem
from maskline.worker.ordering.reorder import Arrival, Duplicate, Policy, Release, SessionOrder
from maskline.worker.ordering.state import LaneState, SessionState

END_OF_TIME_MS: Final = 2**62
"""A watermark that all gaps have passed."""


HandlersOf = Callable[[type[Handled]], Sequence[str]]
"""The names of the handlers of a type of event."""


class Run(NamedTuple):
    """A kept event that runs again."""

    release: Release
    handlers: tuple[str, ...]
    """The names of the handlers that get it, at least one."""


def is_selected(entry: Entry, selection: Selection) -> bool:
    """Whether a kept callback is selected: by its session, its event, and the time when it was received."""
    event = entry.event
    return (
        selection.session in (None, event.session_uuid)
        and selection.event in (None, event.event_name)
        and selection.matches_time(entry.received_at_ms)
    )


def runs_again(
    arrivals: Sequence[Arrival],
    selection: Selection,
    handlers_of: HandlersOf,
    policy: Policy,
    now: SessionState,
) -> list[Run]:
    """What runs again of a session, in order.

    `arrivals`: all that is kept of it, in the order of the stream. `policy`: its gap timeout is as long as a live event
    waits at most. `now`: the session's present state, by which runs are counted on where the kept events reach to it.
    """
    outcomes, after = put_in_order(arrivals, policy)
    runs: list[Run] = []
    for release in (outcome for outcome in outcomes if isinstance(outcome, Release)):
        entry: Entry = release.arrival.payload
        if not is_selected(entry, selection):
            continue
        handlers = tuple(name for name in handlers_of(type(entry.event)) if selection.handler in (None, name))
        if handlers:
            recording = release.arrival.recording
            earlier = _earlier_runs(_lane(after, recording=recording), _lane(now, recording=recording))
            runs.append(Run(replace(release, run=release.run + earlier) if earlier else release, handlers))
    return runs


def replayed_item(release: Release, now_ms: int, job: str | None) -> QueueItem:
    """The item of a retry queue for an event that runs again. `now_ms`: the worker's clock. `job`: which replays it."""
    entry: Entry = release.arrival.payload
    return QueueItem(
        ITEM_VERSION,
        entry.entry_id,
        entry.encoded,
        release.order,
        release.missing,
        release.run,
        now_ms,
        replayed=True,
        job=job,
    )


def without(runs: Iterable[Run], waiting: Collection[tuple[str, str]]) -> list[Run]:
    """The runs without those that wait in a retry queue anyway. `waiting`: handlers, each with an entry ID."""
    left: list[Run] = []
    for release, handlers in runs:
        entry_id = release.arrival.payload.entry_id
        if others := tuple(name for name in handlers if (name, entry_id) not in waiting):
            left.append(Run(release, others))
    return left


def put_in_order(
    arrivals: Sequence[Arrival], policy: Policy
) -> tuple[list[Release | Duplicate], SessionState]:
    """What becomes of a session's kept arrivals, in order and none of them waiting, and the state after the last one.

    `arrivals`: in the order of the stream.
    """
    status, recording = (
        _opened_by([one for one in arrivals if one.recording is recording], policy.first_sequence)
        for recording in (False, True)
    )
    order = SessionOrder(SessionState(status=status, recording=recording))
    outcomes: list[Release | Duplicate] = []
    for arrival in arrivals:
        outcomes += order.arrive(arrival, policy)
    outcomes += order.expire(END_OF_TIME_MS, policy)
    return outcomes, order.state


def _opened_by(arrivals: Sequence[Arrival], first_sequence: int) -> LaneState:
    """The lane before the first of its kept arrivals: the lowest number of their first run opens it.

    The first run ends where an opening comes that is stamped later than all before it: numbering started again there.
    """
    lowest: int | None = None
    top_us: int | None = None
    for number, at_us, may_open in ((one.number, one.timestamp_us, one.may_open) for one in arrivals):
        if number is None:
            continue
        opens = may_open and number in (0, first_sequence)
        if opens and at_us is not None and top_us is not None and at_us > top_us:
            break
        lowest = number if lowest is None else min(lowest, number)
        if at_us is not None and (top_us is None or at_us > top_us):
            top_us = at_us
    if lowest is None or lowest <= first_sequence:
        return LaneState()
    return LaneState(next=lowest, opening=lowest)


def _lane(state: SessionState, *, recording: bool) -> LaneState:
    return state.recording if recording else state.status


def _earlier_runs(kept: LaneState, now: LaneState) -> int:
    """How often numbering had started again before what is kept; 0 where the kept events do not reach to `now`."""
    return now.run - kept.run if kept.next == now.next and now.run > kept.run else 0
