"""A session is judged and drawn: what Redis has of it in, lines out."""

import io
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from session_kit import (
    ANSWERED,
    FIRST,
    POLICY,
    SECOND,
    START_MS,
    VIRTUAL,
    event,
    facts_of,
    kept,
    report,
    session_of_the_docs,
)

from maskline.console.session.command import print_lines
from maskline.console.session.drawing import draw
from maskline.console.session.event_words import WORDS, numbers, span
from maskline.console.session.facts import LetterFacts, QueueFacts, StreamFacts
from maskline.console.session.report import CallRow, EventRow, GoneRow, LetterRow, SessionReport
from maskline.console.session.waits import WaitKind, WaitRow
from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.handlers.redis_store import Record
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.events import EVENT_TYPES
from maskline.schemas.handler_control import Pause
from maskline.schemas.privacy import number_token, set_token_key, token_key
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.queue_item import ITEM_VERSION, QueueItem
from maskline.worker.ordering.reorder import SessionOrder
from maskline.worker.ordering.state import HandlerRetries


def lines(facts, width=80):
    return [line.plain.rstrip() for line in draw(report(facts), width)]


def drawn(facts, width=80):
    return "\n".join(lines(facts, width))


def handled_state(*callbacks):
    """The session's order after these callbacks."""
    order = SessionOrder()
    for at, parameters in enumerate(callbacks):
        order.arrive(kept(parameters, START_MS + at * 1000).arrival, POLICY)
    return order.state


def test_an_answered_call_is_drawn_with_its_bars_facts_and_events():
    text = drawn(facts_of(*ANSWERED))
    assert "call 1 · answered · duration 3 min 12 s · billed 4 min · amount 0.0220" in text
    assert re.search(r"^  first party   ━{50,}$", text, re.MULTILINE)
    assert re.search(r"^  second party  +·?╌+━{40,}$", text, re.MULTILINE)
    assert "  second party  rang 8 s, on the line 3 min 12 s, Normal Hangup (4000)" in text
    assert "  08:00:04         PIN is wrong" in text
    assert "  08:00:21     r1  recording begins" in text
    assert "  08:03:35      7  the call is over: amount 0.0220" in text
    assert "1 wrong PIN" in text
    assert "all in order" in text
    for number in (FIRST, SECOND, VIRTUAL):
        assert number.lstrip("+") not in text
        assert number_token(number) in text


@pytest.mark.parametrize("width", [80, 100, 300])
@pytest.mark.parametrize("index", range(6))
def test_simulated_sessions_fit_the_width_and_show_no_number(index, width):
    events = make_session(11, index, SessionOptions(restart_numbering=index % 2 == 0))
    facts = facts_of(*(it.parameters for it in events), session_uuid=events[0].session_uuid)
    drawing = lines(facts, width)
    assert max(map(cell_len, drawing)) <= width
    assert not re.search(r"\d{9,}", re.sub(r"num_[0-9a-f]{10}|[0-9a-f-]{36}", "", "\n".join(drawing)))
    assert sum("the call is over" in line for line in drawing) == len(report(facts).calls)


def test_missing_late_and_doubled_are_said_where_they_are():
    given = [*ANSWERED[:5], ANSWERED[6], ANSWERED[7], ANSWERED[7], ANSWERED[9], ANSWERED[10], ANSWERED[5]]
    facts = facts_of(*given, step_ms=4_000)
    text = drawn(facts)
    assert "  08:03:32      5  second party hangs up: Normal Hangup  sent 2 times" in text
    assert re.search(r"^ {16}4  given up, and came late$", text, re.MULTILINE)
    assert "second party answers  late" in text
    assert "1 late · 1 doubled" in text
    shown = report(facts)
    assert (shown.late, shown.doubled, shown.missing) == (1, 1, ())
    assert [it.order for it in shown.events if it.sequence_number == 4] == ["late"]


def test_a_number_that_never_came_is_said():
    facts = facts_of(*ANSWERED[:5], *ANSWERED[6:], step_ms=4_000)
    assert re.search(r"^ {16}4  did not arrive$", drawn(facts), re.MULTILINE)
    assert "missing 4" in drawn(facts)
    (call,) = report(facts).calls
    assert (call.complete, call.missing) == (False, (4,))


def test_what_waits_for_a_number_is_said_with_its_time():
    waiting = kept(ANSWERED[5], START_MS + 298_000, "pending")
    facts = facts_of(*ANSWERED[:3], waiting, state=handled_state(*ANSWERED[:3]))
    (wait,) = report(facts).waits
    assert (wait.kind, wait.events, wait.sequence_number, wait.last_sequence_number) == ("gap", 1, 2, 3)
    assert wait.until.timestamp() * 1000 == START_MS + 303_000
    text = drawn(facts)
    assert "1 event waits for numbers 2, 3, given up in 3 s" in text
    assert "second party answers  held" in text
    assert "did not arrive" not in text
    assert "missing" not in text


def test_a_repeat_that_is_pending_beside_what_is_held_is_one_event():
    waiting = [kept(ANSWERED[5], START_MS + 298_000 + at, "pending") for at in (0, 1)]
    facts = facts_of(*ANSWERED[:1], *waiting, state=handled_state(*ANSWERED[:1]))
    shown = report(facts)
    assert [(it.sequence_number, it.state, it.copies) for it in shown.events][-1] == (4, "held", 1)
    assert len(shown.events) == 2


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, len(ANSWERED) - 1), min_size=1, max_size=20),
    st.integers(0, 20),
    st.sampled_from([500, 3_000, 20_000]),
)
def test_every_callback_is_one_event_or_a_repeat_of_one(places, read, step_ms):
    """A worker has read the first ones, by the stream's own clock; the rest is unread."""
    order, callbacks, handled = SessionOrder(), [], set()
    for at, place in enumerate(places):
        callback = kept(ANSWERED[place], START_MS + at * step_ms, "unread")
        if at < read:
            outcomes = order.arrive(callback.arrival, POLICY)
            handled.update(it.arrival.payload.entry_id for it in outcomes)
            callback = callback._replace(progress="pending")
        callbacks.append(callback)
    callbacks = [it._replace(progress="handled") if it.entry.entry_id in handled else it for it in callbacks]
    held = {it.payload.entry_id for it in order.waiting}
    shown = report(facts_of(*callbacks, state=order.state))
    assert len(shown.events) + shown.doubled == len(places)
    assert sum(it.copies for it in shown.events) == shown.doubled
    states = {it.entry_id: it.state for it in shown.events}
    assert {it for it in states if it in handled} <= {
        it for it, state in states.items() if state == "handled"
    }
    if read >= len(places):
        assert {it for it, state in states.items() if state == "held"} == held
    waits = [it for it in shown.waits if it.kind == "gap"]
    assert sum(it.events for it in waits) == sum(state == "held" for state in states.values())


def test_unread_callbacks_are_said():
    facts = facts_of(
        *(kept(it, START_MS + at, "unread") for at, it in enumerate(ANSWERED)),
        stream=StreamFacts(11, START_MS),
    )
    assert [it.kind for it in report(facts).waits] == ["unread"]
    assert "11 events wait to be read by a worker of workers for 5 min" in drawn(facts)


def queued(parameters, attempts=3):
    return QueueItem(ITEM_VERSION, f"{START_MS}-0", b"", "in_order", (), 0, START_MS, attempts)


@pytest.mark.parametrize(
    ("changes", "paused", "expected", "helps"),
    [
        (
            {"due_ms": START_MS + 330_000},
            False,
            "2 events wait for fares for 2 min, tried 3 times, next try in 30 s",
            None,
        ),
        (
            {"due_ms": START_MS + 330_000},
            True,
            "2 events wait for fares, which is paused for 2 min, tried 3 times",
            "maskline resume fares",
        ),
        (
            {"parked": True, "parked_ms": START_MS + 240_000},
            False,
            "2 events wait behind dead letter 3-9-1 of fares for 1 min",
            "maskline dead replay 3-9-1",
        ),
    ],
)
def test_what_waits_for_a_handler_is_said_with_the_command_that_helps(changes, paused, expected, helps):
    queue = QueueFacts("fares", 2, [queued(ANSWERED[0])], since_ms=START_MS + 180_000, **changes)
    letter = DeadLetter(
        "workers", f"{START_MS}-0", "rejected", "call +14155550123", START_MS, b"", "s1", "SessionTimeout",
        handler="fares", parked=True,
    )  # fmt: skip
    facts = facts_of(
        *ANSWERED,
        queues=[queue],
        letters=[LetterFacts("3-9-1", letter)] if "parked" in changes else [],
        pauses={"fares": Pause()} if paused else {},
        state=replace(handled_state(*ANSWERED), retries={"fares": HandlerRetries(2, skipped=(3, 4, 5, 9))}),
    )
    text = drawn(facts)
    assert f"  {expected}\n" in text + "\n"
    assert (f"    {helps}" in text) == (helps is not None)
    assert "fares never handled 3 to 5, 9" in text
    assert "4155550123" not in text


def test_what_is_gone_is_said_loudly():
    state = handled_state(*ANSWERED)
    facts = facts_of(*ANSWERED[6:], state=state, stream=StreamFacts(9, START_MS, True, "9999999999999-0"))
    shown = report(facts)
    assert shown.gone.numbers == (1, 2, 3, 4)
    assert shown.gone.others == 2
    assert not shown.complete
    assert "NO LONGER RETAINED: callbacks of number 1 to 4, 2 without a number" in drawn(facts)
    assert report(facts_of(*ANSWERED, state=state)).complete
    emitted = replace(state, unsequenced=state.unsequenced + b"emitted!")
    assert report(facts_of(*ANSWERED, state=emitted)).gone.others == 1
    assert report(facts_of(*ANSWERED, state=emitted, emitted={b"emitted!"})).complete


def test_what_another_release_recorded_is_said_loudly():
    callbacks = facts_of(*ANSWERED)
    text = drawn(replace(callbacks, timeline=Record(count=11, unreadable=11)))
    assert "OF THE TIMELINE 11 EVENTS CANNOT BE READ" in text
    assert "all in order" not in text
    assert "from the callbacks that are retained" in text
    nothing_kept = facts_of(timeline=Record(count=1, unreadable=1))
    assert "OF THE TIMELINE 1 EVENT CANNOT BE READ" in drawn(nothing_kept)


def test_a_terminal_without_utf_8_gets_ascii(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_lines(report(facts_of(*ANSWERED, event("Ünbekannt", 8, 300))))
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert re.search(r"^  second party +\.?-+=+$", text, re.MULTILINE)
    assert "Session?nbekannt" in text


def test_texts_from_outside_are_harmless():
    odd = event("\x1b[31mOdd\n+14155550123", 1, PlivoHangupCause="\x1b[2J")
    text = drawn(facts_of(odd, session_uuid="s1\x1b[0m"))
    assert "\x1b" not in text
    assert "4155550123" not in text


def test_every_documented_event_has_words():
    assert {*WORDS, "SessionPinAuthenticationStatus"} == {*EVENT_TYPES}


def test_numbers_and_spans_are_written_as_people_do():
    assert numbers((3, 4, 5, 9, 11, 12)) == "3 to 5, 9, 11, 12"
    assert numbers(tuple(range(0, 100, 2))) == "0, 2, 4, 6, 8, 10, 12, 14 and 42 more"
    assert [span(it) for it in (0, 59, 60, 192, 3600, 3780)] == [
        "0 s", "59 s", "1 min", "3 min 12 s", "1 h", "1 h 3 min",
    ]  # fmt: skip


@pytest.fixture
def docs_key():
    """The token key of the drawing in the docs."""
    before = token_key()
    set_token_key(b"the key of the docs, 32 bytes..!")
    yield
    set_token_key(before)


def test_the_docs_show_this_drawing_and_these_keys(docs_key):
    page = (Path(__file__).parents[2] / "docs" / "modules" / "timeline.md").read_text()
    facts = session_of_the_docs()
    assert f"```\n{drawn(facts, 80)}\n```" in page
    keys = {
        *SessionReport.__struct_fields__, *GoneRow.__struct_fields__, *EventRow.__struct_fields__,
        *WaitRow.__struct_fields__, *LetterRow.__struct_fields__, *get_args(WaitKind),
    }  # fmt: skip
    assert sorted(key for key in keys if f"`{key}`" not in page) == []
    summary = {*CallSummary.__struct_fields__} - {"revision", "session_uuid"}
    assert {*CallRow.__struct_fields__} == summary


def test_the_bars_of_a_call_under_way_end_at_the_present():
    answered = facts_of(*ANSWERED[:7])
    lines = drawn(replace(answered, now_ms=START_MS + 60_000)).splitlines()
    (clocks,) = (line for line in lines if line.split() == ["08:00:00", "08:01:00"])
    (bar,) = (line for line in lines if re.match(r"  second party .*━", line))
    assert bar.rstrip().endswith("━")
    assert len(bar) == len(clocks)
    assert "━" not in drawn(replace(answered, now_ms=START_MS + 5 * 3_600_000))
