"""Decides what a replay makes of one dead letter. Pure.

| the letter | a replay |
| --- | --- |
| a handler gave it up, and parked its queue | runs it first, then what waits there |
| a handler gave it up, and the session went on | runs it after what waits, `late` if anything came after it |
| no handler was reached, its session is known | runs it `late`, for each handler of its event |
| it was never decoded, or names no session | puts it back into the stream, to be decoded anew |
| nobody takes it any more, or it has no callback | leaves it where it is: it is *gone* |

Nobody takes it where no loaded module has a handler of that name, or it has one that does not take such events.
"""

from typing import Final, Literal, NamedTuple

from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.jobs.session_replay import HandlersOf
from maskline.worker.ordering.reorder import Arrival, Order
from maskline.worker.ordering.state import SessionState


class LetterPlan(NamedTuple):
    """What a replay makes of a dead letter."""

    action: Literal["run", "requeue", "gone"]
    handlers: tuple[str, ...] = ()
    """Those that run its event. These and what follows are only there if the action is `run`."""
    session_uuid: str = ""
    number: int | None = None
    recording: bool = False
    """It is numbered with the recordings."""


GONE: Final = LetterPlan("gone")
REQUEUE: Final = LetterPlan("requeue")


def plan_replay(letter: DeadLetter, arrival: Arrival | None, handlers_of: HandlersOf) -> LetterPlan:
    """Decide on a dead letter. `arrival`: its event, as this release decodes it; None where that fails."""
    if not letter.callback:
        return GONE  # a foreign entry, or one that somebody had deleted
    if letter.session_uuid is None and letter.handler is None:
        return REQUEUE
    if arrival is None or letter.session_uuid != arrival.payload.event.session_uuid:
        return GONE
    names = handlers_of(type(arrival.payload.event))
    handlers = tuple(name for name in names if letter.handler in (None, name))
    if not handlers:
        return GONE
    return LetterPlan("run", handlers, arrival.payload.event.session_uuid, arrival.number, arrival.recording)


def order_of_replay(letter: DeadLetter, plan: LetterPlan, now: SessionState, *, queue_waits: bool) -> Order:
    """The order that a handler is told, of a letter that its session has gone on without.

    `now`: the session's order as it is. `queue_waits`: events of the session wait for the handler, and run before.
    """
    if plan.number is None:
        return "unsequenced"
    if letter.order is None or queue_waits:
        return "late"
    lane = now.recording if plan.recording else now.status
    is_latest = lane.next == plan.number + 1 and lane.run == letter.run
    return letter.order if is_latest else "late"
