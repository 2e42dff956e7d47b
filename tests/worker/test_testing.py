"""`maskline.testing` as users see it: their modules, their callbacks, no Redis."""

import asyncio
import datetime as dt
import sys
import textwrap
import threading
from collections import Counter
from decimal import Decimal
from types import ModuleType
from urllib.parse import urlencode

import pytest

from maskline import Reject, Retry, on, resource
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import (
    SessionFirstPartyRinging,
    SessionPartiesHangup,
    SessionRecordingCompleted,
    SessionSecondPartyHangup,
    UnknownEvent,
)
from maskline.schemas.parameters import FORM_TYPE
from maskline.testing import SESSION_UUID, Harness, callback

pytestmark = pytest.mark.usefixtures("both_ways")


def module(**names):
    made = ModuleType("users_handlers")
    vars(made).update(names)
    return made


def recorder(**options):
    @on.every(name="recorder", **options)
    async def record(event, ctx):
        pass

    return module(record=record)


def numbers(harness):
    return [call.event.sequence_number for call in harness.calls]


def ringing(number, **attributes):
    return callback("SessionFirstPartyRinging", sequence_number=number, **attributes)


# Repeats


@pytest.mark.parametrize("ignored", [(), ("Attempt", "via", "Amount", "EventTimestamp")])
async def test_a_repeat_that_differs_in_what_is_ignored_is_a_duplicate_and_starts_no_run_otherwise(ignored):
    """Another parameter, a query of one's own, a value that has grown, another time."""
    first = [ringing(number, event_timestamp=f"2026-01-05 09:00:0{number}") for number in (1, 2, 3)]
    body = urlencode(first[1]).encode()
    again = [
        first[2] | {"Attempt": "2"},
        RawCallback("POST", b"via=b", FORM_TYPE, body, 1, ""),
        first[2] | {"Amount": "0.0170"},
        first[2] | {"EventTimestamp": "2026-01-05 09:00:40"},
    ]
    async with Harness(recorder(), ignored_parameters=ignored) as harness:
        await harness.feed(*first, *again)
        await harness.feed(
            *(ringing(number, event_timestamp=f"2026-01-05 09:00:2{number}") for number in (4, 5))
        )
        assert numbers(harness) == ([1, 2, 3, 4, 5] if ignored else [1, 2, 3, 3, 2, 3, 4, 5])
        assert {call.order for call in harness.calls[-2:]} == {"in_order"}
        assert (harness.duplicates, harness.waiting) == ((4, 0) if ignored else (0, 1))
        await harness.pass_time(5)
        assert [call.order for call in harness.calls].count("late") == (0 if ignored else 4)
        assert {call.run for call in harness.calls} == {0}
        assert not any(call.missing for call in harness.calls)


# The example of the module's own docstring


async def test_the_example_of_the_docstring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "my_handlers.py").write_text(
        textwrap.dedent("""
            from maskline.events import Event
            from maskline import Context, on

            @on.every
            async def settle(event: Event, ctx: Context) -> None:
                pass
        """)
    )
    try:
        async with Harness("my_handlers") as harness:
            hangup = callback("SessionSecondPartyHangup", sequence_number=2, amount="0.0170")
            await harness.feed(hangup, callback("SessionSecondPartyAnswer", sequence_number=1), hangup)
        assert [call.event.sequence_number for call in harness.calls] == [1, 2]
        assert harness.duplicates == 1
    finally:
        sys.modules.pop("my_handlers", None)


async def test_callbacks_have_the_attributes_they_were_given():
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    async with Harness(recorder()) as harness:
        await harness.feed(
            callback(
                "SessionSecondPartyHangup", sequence_number=1, from_number="+447700900123", to_number="+14155550123",
                amount=Decimal("0.0170"), billed_duration=60, event_timestamp=moment, plivo_hangup_cause_code=4000,
                pin_authentication_status="success", first_party=None, MyOwn="kept",
            ),
            callback(
                "SessionRecordingCompleted", recording_uuid="r", recording_url="https://r", recording_duration=5,
                recording_resource_url="https://rr", recording_start_time=moment, recording_format=".mp3",
            ),
            callback("SessionSomethingNew", sequence_number=2),
        )  # fmt: skip
    hangup, recording, unknown = (call.event for call in harness.calls)
    assert isinstance(hangup, SessionSecondPartyHangup)
    assert hangup.session_uuid == SESSION_UUID
    assert (hangup.from_number, hangup.to_number) == ("+447700900123", "+14155550123")
    assert (hangup.amount, hangup.billed_duration, hangup.event_timestamp) == (Decimal("0.0170"), 60, moment)
    assert (hangup.plivo_hangup_cause_code, hangup.pin_authentication_status) == (4000, "success")
    assert (hangup.first_party, hangup.extra, hangup.problems) == (None, {"MyOwn": "kept"}, ())
    assert isinstance(recording, SessionRecordingCompleted)
    assert (recording.recording_uuid, recording.recording_url, recording.recording_resource_url) == (
        "r", "https://r", "https://rr",
    )  # fmt: skip
    assert (recording.recording_duration, recording.recording_start_time) == (5, moment)
    assert isinstance(unknown, UnknownEvent)
    assert unknown.event_name == "SessionSomethingNew"


async def test_sessions_do_not_wait_for_each_other():
    async with Harness(recorder()) as harness:
        await harness.feed(ringing(1), ringing(2, session_uuid="other"), ringing(1, session_uuid="other"))
        assert harness.waiting == 0
    other = [call.event.sequence_number for call in harness.calls if call.event.session_uuid == "other"]
    assert other == [1, 2]
    assert len(harness.calls) == 3


async def test_raw_callbacks_as_ingest_stores_them():
    raw = RawCallback("POST", b"", FORM_TYPE, b"EventName=SessionTimeout&SessionUUID=s", 5, "MA1")
    async with Harness(recorder()) as harness:
        await harness.feed(raw)
    assert [call.event.event_name for call in harness.calls] == ["SessionTimeout"]


async def test_gaps_wait_for_the_harness_s_time():
    async with Harness(recorder(), gap_timeout_ms=2_000) as harness:
        await harness.feed(ringing(1), ringing(4))
        assert (numbers(harness), harness.waiting) == ([1], 1)
        await harness.pass_time(1.999)
        assert numbers(harness) == [1]
        await harness.pass_time(0.001)
        assert (numbers(harness), harness.waiting) == ([1, 4], 0)
        await harness.feed(ringing(2))
    assert [call.order for call in harness.calls] == ["in_order", "after_gap", "late"]
    assert harness.calls[1].missing == (2, 3)


async def test_settings_of_the_harness_mean_what_a_worker_s_mean():
    recording = callback("SessionRecordingInitiated", sequence_number=1)
    async with Harness(recorder(), first_sequence=7, recording_sequence="shared", held_max=1) as harness:
        await harness.feed(ringing(9), recording)
        assert harness.waiting == 1
        await harness.feed(ringing(7))
        assert numbers(harness) == [1, 7]
        assert [call.order for call in harness.calls] == ["late", "in_order"]
        await harness.feed(ringing(11))
    assert numbers(harness) == [1, 7, 9]


async def test_late_events_as_dead_letters():
    async with Harness(recorder(), late="dead") as harness:
        await harness.feed(ringing(1), ringing(2))
        await harness.feed(ringing(1, amount="2"))
    assert numbers(harness) == [1, 2]
    assert [letter.code for letter in harness.dead_letters] == ["late"]


async def test_retries_come_at_once_and_every_attempt_is_recorded():
    @on(SessionFirstPartyRinging, retries=3, backoff_ms=60_000)
    async def handle(event, ctx):
        if ctx.attempt == 1:
            raise Retry(after_ms=3_600_000)
        if ctx.attempt == 2:
            raise ValueError("twice")

    async with Harness(module(handle=handle)) as harness:
        await harness.feed(ringing(1))
    assert [call.attempt for call in harness.calls] == [1, 2, 3]
    assert [type(call.error) for call in harness.calls] == [Retry, ValueError, type(None)]
    assert len({call.idempotency_key for call in harness.calls}) == 1


async def test_given_up_events_are_dead_letters_of_the_harness():
    @on(SessionFirstPartyRinging, name="picky")
    async def handle(event, ctx):
        raise Reject("no")

    async with Harness(module(handle=handle)) as harness:
        await harness.feed(ringing(1))
        await harness.feed({"EventName": "SessionTimeout"})
    assert [(letter.code, letter.handler) for letter in harness.dead_letters] == [
        ("rejected", "picky"),
        ("no_session_uuid", None),
    ]


async def test_a_handler_that_counts_no_retries_gives_up_after_ten_attempts():
    @on(SessionFirstPartyRinging, name="patient")
    async def patient(event, ctx):
        raise ValueError

    @on(SessionFirstPartyRinging, name="impatient", give_up_after_s=0)
    async def impatient(event, ctx):
        raise ValueError

    async with Harness(module(patient=patient, impatient=impatient)) as harness:
        await harness.feed(ringing(1))
    attempts = Counter(call.handler for call in harness.calls)
    assert attempts == {"patient": 10, "impatient": 1}
    assert {letter.code for letter in harness.dead_letters} == {"retries_exhausted"}


@pytest.mark.parametrize(("on_give_up", "handled", "parked"), [("park", [1], 2), ("skip", [1, 3, 4], 0)])
async def test_what_comes_behind_a_dead_letter_waits_or_goes_on(on_give_up, handled, parked):
    skipped = []

    @on(SessionFirstPartyRinging, name="picky", on_give_up=on_give_up)
    async def picky(event, ctx):
        if ctx.sequence_number == 2:
            raise Reject("no")
        skipped.append(ctx.skipped)

    async with Harness(module(picky=picky)) as harness:
        await harness.feed(*map(ringing, (1, 2, 3)))
        await harness.feed(ringing(4))
        assert harness.parked == parked
    assert [call.event.sequence_number for call in harness.calls if call.error is None] == handled
    assert skipped == [(), (2,), (2,)][: len(handled)]


async def test_handlers_of_dead_letters_are_called_and_recorded():
    @on(SessionFirstPartyRinging, name="picky")
    async def picky(event, ctx):
        raise Reject("no")

    @on.dead(name="alert")
    async def alert(letter, ctx):
        if letter.handler is None:
            raise ValueError("nobody")

    async with Harness(module(picky=picky, alert=alert)) as harness:
        await harness.feed(ringing(1))
        await harness.feed({"EventName": "SessionTimeout"})
    first, second = harness.dead_calls
    assert (first.handler, first.letter.handler, first.letter.reason) == ("alert", "picky", "rejected: no")
    assert first.letter.event.sequence_number == 1
    assert (first.error, type(second.error), second.letter.code) == (None, ValueError, "no_session_uuid")
    assert first.letter.id != second.letter.id


async def test_plain_handlers_and_wrapped_ones():
    threads = []

    async def work(ctx):
        threads.append(threading.current_thread())
        if ctx.attempt == 1:
            raise ValueError

    @on(SessionFirstPartyRinging, name="plain")
    def plain(event, ctx):
        threads.append(threading.current_thread())

    @on(SessionPartiesHangup, name="wrapped", retries=1)
    def wrapped(event, ctx):
        return work(ctx)

    async with Harness(module(plain=plain, wrapped=wrapped)) as harness:
        await harness.feed(ringing(1), callback("SessionPartiesHangup", sequence_number=2))
    assert [(call.handler, call.attempt, type(call.error)) for call in harness.calls] == [
        ("plain", 1, type(None)),
        ("wrapped", 1, ValueError),
        ("wrapped", 2, type(None)),
    ]
    assert threads[0] is not threads[1] is threading.current_thread()


async def test_resources_are_open_around_everything():
    happened = []

    @resource
    async def pool():
        happened.append("open")
        yield happened
        happened.append("closed")

    @on.every
    async def handle(event, ctx, pool):
        pool.append("handled")

    async with Harness(module(pool=pool, handle=handle)) as harness:
        await harness.feed(ringing(1))
    assert happened == ["open", "handled", "closed"]


async def test_a_resource_that_fails_closes_those_before_it():
    happened = []

    @resource
    async def first():
        try:
            yield
        finally:
            happened.append("closed")

    @resource
    async def second():
        raise OSError("no server")
        yield

    @on.every
    async def handle(event, ctx):
        pass

    with pytest.raises(OSError, match="no server"):
        async with Harness(module(first=first, second=second, handle=handle)):
            raise AssertionError
    assert happened == ["closed"]


async def test_wrong_modules_are_refused():
    with pytest.raises(ConfigError, match="declares no handler"):
        Harness(module())


async def test_many_sessions_with_concurrency_one():
    running = 0

    @on.every
    async def handle(event, ctx):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1

    async with Harness(module(handle=handle), concurrency=1) as harness:
        await harness.feed(*(ringing(number, session_uuid=f"s{s}") for s in range(10) for number in (2, 1)))
    assert len(harness.calls) == 20
    assert not any(call.error for call in harness.calls)


async def test_leaving_early_cancels_what_is_under_way():
    begun = asyncio.Event()

    @on.every
    async def handle(event, ctx):
        begun.set()
        await asyncio.sleep(60)

    async with Harness(module(handle=handle)) as harness:
        feeding = asyncio.ensure_future(harness.feed(ringing(1)))
        await begun.wait()
        feeding.cancel()
    assert [type(call.error) for call in harness.calls] == [asyncio.CancelledError]


async def test_a_session_is_forgotten_after_a_day_of_silence():
    async with Harness(recorder()) as harness:
        await harness.feed(ringing(1))
        await harness.feed(ringing(1))
        await harness.pass_time(86_400)
        await harness.feed(ringing(1))
    assert numbers(harness) == [1, 1]
    assert harness.duplicates == 1
