"""What a replay makes of a dead letter."""

from typing import Any

import pytest
from dispatch_kit import RECEIVED_MS, START_MS
from msgspec.structs import replace
from partition_kit import fields

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import Event, SessionFirstPartyRinging
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.jobs.letter_plan import GONE, REQUEUE, LetterPlan, order_of_replay, plan_replay
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.ordering.state import LaneState, SessionState


def letter(callback: bytes | None = None, **more: Any) -> DeadLetter:
    """A letter of a handler about number 7 of session `s`."""
    given = {"session_uuid": "s", "handler": "billing", "order": "in_order", **more}
    if callback is None:
        callback = fields(SequenceNumber="7")[1]
    return DeadLetter(
        "workers", f"{START_MS}-0", "retries_exhausted", "no answer", RECEIVED_MS, callback, **given
    )


def handlers_of(kind: type[Event]) -> tuple[str, ...]:
    return ("crm", "billing") if kind is SessionFirstPartyRinging else ()


def arrival_of(one: DeadLetter, *, shared: bool = False) -> Arrival | None:
    try:
        return entry_decoder().arrival_of(one.entry_id, (CALLBACK_FIELD, one.callback), shared)
    except UndecodableEntryError:
        return None


def plan(one: DeadLetter) -> LetterPlan:
    return plan_replay(one, arrival_of(one), handlers_of)


def test_the_handler_that_gave_it_up_runs_it() -> None:
    assert plan(letter()) == LetterPlan("run", ("billing",), "s", 7, False)


@pytest.mark.parametrize("code", ["late", "internal_error"])
def test_all_handlers_of_its_event_run_it_where_none_was_reached(code: str) -> None:
    assert plan(replace(letter(handler=None), code=code)) == LetterPlan(
        "run", ("crm", "billing"), "s", 7, False
    )


def test_recordings_are_numbered_apart() -> None:
    recording = letter(fields(EventName="SessionRecordingReady", SequenceNumber="2")[1], handler="log")
    found = plan_replay(recording, arrival_of(recording), lambda _: ("log",))
    assert (found.number, found.recording) == (2, True)
    assert not plan_replay(recording, arrival_of(recording, shared=True), lambda _: ("log",)).recording


@pytest.mark.parametrize("callback", [b"\xc1", fields(SessionUUID="", SequenceNumber="7")[1]])
def test_what_was_never_in_a_session_goes_back_into_the_stream(callback: bytes) -> None:
    assert plan(letter(callback, session_uuid=None, handler=None)) == REQUEUE


@pytest.mark.parametrize(
    "one",
    [
        letter(handler="renamed"),
        letter(fields(EventName="SessionTimeout")[1]),  # the handler does not take it any more
        letter(b"", handler=None, session_uuid=None),
        letter(b"\xc1"),
        letter(session_uuid="another"),
    ],
)
def test_without_its_handler_or_its_callback_it_is_gone(one: DeadLetter) -> None:
    assert plan(one) == GONE


RUN = LetterPlan("run", ("billing",), "s", 7, False)


@pytest.mark.parametrize(
    ("lane", "order"),
    [
        (LaneState(next=8), "after_gap"),
        (LaneState(next=9), "late"),
        (LaneState(next=8, run=1), "late"),
        (LaneState(), "late"),
    ],
)
def test_it_keeps_its_order_while_nothing_of_the_session_came_after_it(lane: LaneState, order: str) -> None:
    given = letter(order="after_gap")
    assert order_of_replay(given, RUN, SessionState(status=lane), queue_waits=False) == order
    recording = RUN._replace(recording=True)
    assert order_of_replay(given, recording, SessionState(recording=lane), queue_waits=False) == order


def test_it_is_late_behind_what_waits_and_where_its_order_is_not_known() -> None:
    latest = SessionState(status=LaneState(next=8))
    assert order_of_replay(letter(), RUN, latest, queue_waits=True) == "late"
    assert order_of_replay(letter(order=None), RUN, latest, queue_waits=False) == "late"


def test_an_event_without_a_number_stays_unsequenced() -> None:
    unsequenced = RUN._replace(number=None)
    assert (
        order_of_replay(letter(order="unsequenced"), unsequenced, SessionState(), queue_waits=True)
        == "unsequenced"
    )
