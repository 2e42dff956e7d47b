"""What a handler of dead letters gets, and what its failures come to: a line in the log."""

import asyncio
import contextvars
import decimal
from datetime import UTC, datetime

import pytest
from dispatch_kit import RECEIVED_MS, START_MS
from structlog.testing import capture_logs

from maskline.events import DeadLetterView, SessionTimeout
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.api.binding import BoundDeadHandler
from maskline.worker.dead_letters import calls as module
from maskline.worker.dead_letters.calls import DeadLetterCalls, view_of
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.decode import entry_decoder

BODY = b"EventName=SessionTimeout&SessionUUID=s&SequenceNumber=4&From=%2B447700900123"
CALLBACK = encode_callback(RawCallback("POST", b"", FORM_TYPE, BODY, RECEIVED_MS, "MA1"))
LETTER = DeadLetter(
    group="workers",
    entry_id=f"{START_MS}-0",
    code="retries_exhausted",
    reason="given up after 24 h and 300 attempts: ValueError",
    failed_at_ms=START_MS,
    callback=CALLBACK,
    session_uuid="s",
    event_name="SessionTimeout",
    sequence_number=4,
    handler="settle",
    attempts=300,
    received_at_ms=RECEIVED_MS,
    traceback="fares.py:7 in settle",
    parked=True,
    group_key="abcdefg2",
)


def calls_of(*functions, timeout_s=20.0, context=None):
    bound = [BoundDeadHandler(function.__name__, function, timeout_s) for function in functions]
    return DeadLetterCalls(bound, context or contextvars.copy_context(), entry_decoder())


def test_view_has_what_the_letter_has_and_the_event():
    view = view_of(LETTER, "3-9-0", entry_decoder())
    assert isinstance(view.event, SessionTimeout)
    assert view == DeadLetterView(
        id="3-9-0",
        session_uuid="s",
        event_name="SessionTimeout",
        sequence_number=4,
        handler="settle",
        code="retries_exhausted",
        reason="given up after 24 h and 300 attempts: ValueError",
        attempts=300,
        received_at=datetime.fromtimestamp(RECEIVED_MS / 1000, UTC),
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
        parked=True,
        group="abcdefg2",
        traceback="fares.py:7 in settle",
        event=view.event,
        entry_id=f"{START_MS}-0",
        callback=RawCallback("POST", b"", FORM_TYPE, BODY, RECEIVED_MS, "MA1"),
    )
    assert view.event.from_number == "+447700900123"
    assert "900123" not in repr(view)


@pytest.mark.parametrize("callback", [b"", b"\xc1", CALLBACK[:-9]])
@pytest.mark.parametrize("received_at_ms", [None, 2**62])
def test_letters_that_cannot_be_decoded_have_a_view_all_the_same(callback, received_at_ms):
    letter = DeadLetter("workers", "1-1", "not_decodable", "no", 5, callback, received_at_ms=received_at_ms)
    view = view_of(letter, "0-1-0", entry_decoder())
    assert (view.event, view.received_at, view.handler, view.session_uuid) == (None, None, None, None)
    assert view.group
    assert view.callback is None


def test_the_callback_of_a_letter_without_an_event_is_there():
    callback = RawCallback("POST", b"", FORM_TYPE, b"no=event", RECEIVED_MS, "MA1")
    letter = DeadLetter("workers", "1-1", "not_decodable", "no", 5, encode_callback(callback))
    view = view_of(letter, "0-1-0", entry_decoder())
    assert (view.event, view.callback) == (None, callback)


async def test_all_handlers_are_called_one_after_the_other_with_a_context():
    seen = []

    async def first(letter, ctx):
        await asyncio.sleep(0)
        seen.append(("first", letter.id, ctx.idempotency_key, ctx.fencing_token))

    async def second(letter, ctx):
        ctx.log.info("a dead letter")
        seen.append(("second", letter.id, ctx.idempotency_key, ctx.fencing_token))

    with capture_logs() as lines:
        await calls_of(first, second).call(LETTER, "3-9-0", 7)
    assert seen == [("first", "3-9-0", "dead:3-9-0", 7), ("second", "3-9-0", "dead:3-9-0", 7)]
    (line,) = lines
    assert (line["letter"], line["dead_handler"], line["session_uuid"], line["sequence_number"]) == (
        "3-9-0", "second", "s", 4
    )  # fmt: skip


@pytest.mark.parametrize(
    "error", [ValueError("for +44 7700 900123"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
async def test_a_failure_is_logged_without_numbers_and_the_next_handler_is_called(error):
    seen = []

    async def fails(letter, ctx):
        raise error

    async def well(letter, ctx):
        seen.append(letter.id)

    with capture_logs() as lines:
        await calls_of(fails, well).call(LETTER, "3-9-0", 7)
    assert seen == ["3-9-0"]
    (line,) = lines
    assert (line["event"], line["dead_handler"], line["letter"]) == (
        "dead letter handler failed", "fails", "3-9-0"
    )  # fmt: skip
    assert line["why"].startswith(type(error).__name__)
    assert line["where"] == "test_dead_letter_calls.py:fails"
    assert "900123" not in str(line)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_handler_that_takes_too_long_is_cancelled_and_the_next_is_called(stubborn, monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.01)
    seen, end = [], asyncio.Event()

    async def slow(letter, ctx):
        try:
            await end.wait()
        except asyncio.CancelledError:
            if stubborn:
                await end.wait()
            raise

    async def well(letter, ctx):
        seen.append(letter.id)

    with capture_logs() as lines:
        await calls_of(slow, well, timeout_s=0.02).call(LETTER, "3-9-0", 7)
    end.set()
    assert seen == ["3-9-0"]
    assert [line["why"] for line in lines] == ["TimeoutError: no end after 20 ms"]


async def test_every_call_begins_with_the_context_of_the_resources():
    variable = contextvars.ContextVar("variable", default="unset")
    context = contextvars.copy_context()
    context.run(variable.set, "by a resource")
    seen = []

    async def handle(letter, ctx):
        seen.append((variable.get(), decimal.getcontext().prec))
        variable.set("by a call")
        decimal.getcontext().prec = 3

    calls = calls_of(handle, context=context)
    await calls.call(LETTER, "3-9-0", 7)
    await calls.call(LETTER, "3-9-1", 7)
    assert seen == [("by a resource", decimal.DefaultContext.prec)] * 2
    assert calls.longest_s == pytest.approx(20 + module.CANCEL_GRACE_S)
