"""What waits in a session now: for what, since when, until when, and the command that helps. Pure."""

from collections.abc import Iterator
from datetime import datetime
from shlex import quote
from typing import Literal

import msgspec

from maskline.console.output import utc_time
from maskline.console.session.facts import QueueFacts, SessionFacts
from maskline.console.session.standing import Gap, Standing, letter_before

WaitKind = Literal["gap", "set_aside", "paused", "parked", "under_way", "unread"]
"""
| kind | what waits, for what |
| --- | --- |
| `gap` | events, for a number before them |
| `set_aside` | events, for the next try of a handler that failed, or is held |
| `paused` | the same, and an operator has paused the handler |
| `parked` | events, for an operator: behind a dead letter |
| `under_way` | events that a worker has and has not finished |
| `unread` | events that no worker of the group has read |
"""


class WaitRow(msgspec.Struct, frozen=True, kw_only=True):
    """Something that waits."""

    kind: WaitKind
    events: int
    """How many events wait. A handler may be parked without any: the next one will wait."""
    handler: str | None = None
    sequence_number: int | None = None
    """`gap`: the lowest number that is waited for; otherwise that of the first event that waits."""
    last_sequence_number: int | None = None
    """`gap`: the highest number that is waited for."""
    own_lane: bool = False
    """`gap`: in the recordings' own numbering."""
    since: datetime | None = None
    until: datetime | None = None
    """`gap`: when the number is given up; later while an ingest node holds spooled callbacks. `set_aside`: when the
    next try is due."""
    attempts: int = 0
    """Of the first event: those that failed and count."""
    dead_letter: str | None = None
    """`parked`: the dead letter that the events wait behind; null if it cannot be found."""
    command: str | None = None
    """What helps, where something does."""


def waits_of(facts: SessionFacts, standing: Standing) -> Iterator[WaitRow]:
    """What waits in a session."""
    for gap in standing.gaps:
        yield _gap_row(gap)
    for kind, state in (("under_way", "under way"), ("unread", "unread")):
        waiting = [it.observation for it in standing.events if it.state == state]
        if waiting:
            yield WaitRow(
                kind="under_way" if kind == "under_way" else "unread",
                events=len(waiting),
                sequence_number=waiting[0].number,
                since=utc_time(min(it.received_at_ms for it in waiting)),
                command="maskline status",
            )
    for queue in facts.queues:
        if queue.waiting or queue.parked:
            yield _queue_row(queue, facts)


def _gap_row(gap: Gap) -> WaitRow:
    return WaitRow(
        kind="gap",
        events=gap.held,
        sequence_number=gap.first,
        last_sequence_number=gap.last,
        own_lane=gap.recording,
        until=utc_time(gap.until_ms),
    )


def _queue_row(queue: QueueFacts, facts: SessionFacts) -> WaitRow:
    head = queue.items[0] if queue.items else None
    by_entry = {it.entry.entry_id: it.arrival.number for it in facts.callbacks}
    letter = letter_before(queue, facts.letters, facts.group)
    paused = queue.handler in facts.pauses
    kind: WaitKind = "parked" if queue.parked else "paused" if paused else "set_aside"
    command = None
    if letter is not None:
        command = f"maskline dead replay {letter.id}"
    elif queue.parked:
        command = f"maskline dead list --session {quote(facts.session_uuid)}"
    elif paused:
        command = f"maskline resume {quote(queue.handler)}"
    since_ms = queue.parked_ms if queue.parked else queue.since_ms
    return WaitRow(
        kind=kind,
        events=queue.waiting,
        handler=queue.handler,
        sequence_number=None if head is None else by_entry.get(head.entry_id),
        since=None if since_ms is None else utc_time(since_ms),
        until=None if queue.due_ms is None else utc_time(queue.due_ms),
        attempts=0 if head is None else head.attempts,
        dead_letter=None if letter is None else letter.id,
        command=command,
    )
