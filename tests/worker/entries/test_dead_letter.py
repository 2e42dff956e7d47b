import json

import msgspec
import pytest
from dispatch_kit import START_MS, Dispatch

from maskline import on
from maskline.schemas.callback import decode_callback
from maskline.schemas.events import SessionFirstPartyRinging
from maskline.worker.api.exceptions import HandlerHungError, HandlerTimeoutError
from maskline.worker.api.failure_verdict import Verdict, cause_of_giving_up
from maskline.worker.entries.dead_letter import (
    LETTER_MAX_BYTES,
    MISSING_MAX,
    Cause,
    DeadLetter,
    dead_letter_of,
    decode_dead_letter,
    encode_dead_letter,
    group_key_of,
    internal_error,
    public_id,
    split_public_id,
)
from maskline.worker.error_text import short_traceback
from maskline.worker.ordering.reorder import Release
from maskline.worker.ordering.state import NEW_SESSION

LEAST = DeadLetter("workers", "1-1", "late", "late", 5, b"\x00\xff")
FULL = DeadLetter(
    group="workers",
    entry_id="1-1",
    code="retries_exhausted",
    reason="retries exhausted after 2 attempts: ValueError: ✓",
    failed_at_ms=START_MS,
    callback=b"From=%2B447700900123",
    session_uuid="s",
    event_name="SessionTimeout",
    sequence_number=2**53 - 1,
    handler="settle",
    attempts=2,
    received_at_ms=START_MS,
    traceback="Traceback …",
    foreign_fields=[(b"From", b"+447700900123")],
    parked=True,
    error_type="ValueError",
    frame="fares.py:settle",
    group_key="abcdefg2",
    order="after_gap",
    run=1,
    missing=(3, 4),
)


@pytest.mark.parametrize("letter", [LEAST, FULL])
def test_dead_letter_is_decoded_as_it_was_encoded(letter):
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


def test_absent_fields_of_a_dead_letter_take_no_room():
    assert set(msgspec.msgpack.decode(encode_dead_letter(LEAST))) == {
        "group",
        "entry_id",
        "code",
        "reason",
        "failed_at_ms",
        "callback",
    }


def test_letters_of_older_releases_are_read_and_grouped_by_their_reasons():
    older = {
        "group": "workers",
        "entry_id": "1-1",
        "code": "retries_exhausted",
        "reason": "retries exhausted after 9 attempts: KeyError: 'a'",
        "failed_at_ms": 5,
        "callback": b"x",
        "handler": "settle",
    }
    letter = decode_dead_letter(msgspec.msgpack.encode(older))
    assert (letter.parked, letter.order, letter.run, letter.missing) == (False, None, 0, ())
    another = msgspec.structs.replace(letter, reason="retries exhausted after 9 attempts: KeyError: 'b'")
    assert letter.group_key is None
    assert group_key_of(letter) == group_key_of(another)
    assert group_key_of(letter) != group_key_of(msgspec.structs.replace(letter, handler="bill"))
    assert group_key_of(msgspec.structs.replace(letter, group_key="abcdefg2")) == "abcdefg2"


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"group": 1}), b"d"])
def test_bytes_that_are_no_dead_letter_are_refused(value):
    with pytest.raises(msgspec.MsgspecError):
        decode_dead_letter(value)


def test_repr_of_a_dead_letter_shows_no_phone_number():
    shown = repr(FULL)
    assert "900123" not in shown
    assert "callback=20" in shown
    assert "foreign_fields=1" in shown
    assert "settle" in shown
    assert str(FULL) == shown


@pytest.mark.parametrize(("partition", "entry_id"), [(0, "1-1"), (63, "1767225600000-0"), (16_383, "5-12")])
def test_public_id_is_split_into_partition_and_entry_id(partition, entry_id):
    assert split_public_id(public_id(partition, entry_id)) == (partition, entry_id)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1-2", "1-2-", "-1-2-3", "1-2--3", "a-1-1", "1-1-a", "1-2-3-4"),
        *(" 1-2-3", "1-2-3\n", "1-+2-3", "1_0-2-3", "٣-1-1"),
    ],
)
def test_text_that_is_no_public_id_is_refused(text):
    with pytest.raises(ValueError, match="dead letter"):
        split_public_id(text)


def arrival():
    @on(SessionFirstPartyRinging)
    async def handle(event, ctx):
        pass

    d = Dispatch(handle)
    (session,) = d.arrive(("s", 1), From="%2B447700900123")
    return session.queue[0].arrival


async def test_dead_letter_keeps_what_a_replay_needs_to_tell_the_handler_the_same():
    release = Release(arrival(), "after_gap", (2, 3), 1, NEW_SESSION)
    cause = Cause("rejected", "no", "h", 1)
    letter = dead_letter_of(release.arrival, cause, group="g", failed_at_ms=9, release=release, parked=True)
    assert (letter.order, letter.missing, letter.run, letter.parked) == ("after_gap", (2, 3), 1, True)


def fail_on(number):
    raise LookupError(f"no fare {number} for num_{number:012x} at 2026-01-01T00:00:{number:02}")


def letter_of(failure, *, handler="settle", attempts=1, code="retries_exhausted"):
    reason = f"retries exhausted after {attempts} attempts: {failure}"
    cause = cause_of_giving_up(Verdict(None, code, reason), failure, handler=handler, attempts=attempts)
    return dead_letter_of(arrival(), cause, group="g", failed_at_ms=9)


def raised_by(call, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  each call raises another one
        call(*arguments)
    return caught.value


async def test_letters_of_one_bug_have_one_group_whatever_the_event_and_the_attempts():
    first = letter_of(raised_by(fail_on, 1), attempts=1)
    second = letter_of(raised_by(fail_on, 42), attempts=312)
    assert (first.error_type, first.frame) == ("LookupError", "test_dead_letter.py:fail_on")
    assert first.group_key == second.group_key
    others = [
        letter_of(raised_by(chained)),
        letter_of(raised_by(libraries)),
        letter_of(raised_by(fail_on, 1), handler="bill"),
        letter_of(raised_by(fail_on, 1), code="rejected"),
    ]
    assert len({first.group_key, *(letter.group_key for letter in others)}) == 5


async def test_an_exception_group_is_grouped_by_its_first_exception():
    letter = letter_of(raised_by(grouped))
    assert (letter.error_type, letter.frame) == ("LookupError", None)
    assert letter.group_key != letter_of(ExceptionGroup("several", [KeyError("x")])).group_key


async def test_timeouts_of_one_handler_are_one_group_however_they_ended():
    letters = [
        letter_of(failure, code="timed_out")
        for failure in (
            HandlerTimeoutError("no end after 30000 ms"),
            HandlerHungError("no end after 30000 ms, in a thread, which cannot be stopped"),
        )
    ]
    assert [letter.error_type for letter in letters] == [None, None]
    assert letters[0].group_key == letters[1].group_key
    other = letter_of(HandlerTimeoutError("no end"), handler="bill", code="timed_out")
    assert other.group_key != letters[0].group_key


async def test_dead_letter_has_the_callback_byte_for_byte():
    letter = dead_letter_of(arrival(), Cause("rejected", "no", "h", 1), group="g", failed_at_ms=9)
    assert decode_callback(letter.callback).body.endswith(b"From=%2B447700900123")
    assert (letter.group, letter.failed_at_ms, letter.traceback) == ("g", 9, None)


@pytest.mark.parametrize("shift", [0, 1, 7, 13, 20, 27])
async def test_traceback_has_the_message_and_no_phone_number_nor_half_of_one(shift):
    text = "x" * shift + "the end \udcff " + " ".join(["+44 7700 900123"] * 20_000)
    cause = Cause("c", "r", "h", 1, short_traceback(ValueError(text)))
    letter = dead_letter_of(arrival(), cause, group="g", failed_at_ms=9)
    assert letter.traceback is not None
    assert "the end \\udcff" in letter.traceback
    assert "900123" not in letter.traceback
    assert "7700" not in letter.traceback
    assert_small(letter)


def assert_small(letter):
    """LETTER_MAX_BYTES at most besides the callback, and all that is there can be read back."""
    encoded = encode_dead_letter(letter)
    foreign = sum(len(name) + len(value) for name, value in letter.foreign_fields)
    assert len(encoded) - len(letter.callback) - foreign <= LETTER_MAX_BYTES
    back = decode_dead_letter(encoded)
    assert (back.callback, back.foreign_fields, back.entry_id) == (
        letter.callback,
        letter.foreign_fields,
        letter.entry_id,
    )
    return back


def deep(left):
    if left:
        deep(left - 1)
    raise LookupError("at the bottom " + "✓" * 5_000)


def libraries():
    return msgspec.msgpack.decode(b"\x91" * 9)


def chained():
    try:
        json.loads("{")
    except ValueError as error:
        raise RuntimeError("the answer of the fare service cannot be read") from error


def grouped():
    raise ExceptionGroup("several", [LookupError(f"number {n}") for n in range(1_000)])


def endless():
    error = RuntimeError("0")
    for number in range(10_000):
        following = RuntimeError(str(number))
        following.__cause__ = error
        error = following
    raise error


@pytest.mark.parametrize("fail", [lambda: deep(0), lambda: deep(900), libraries, chained, grouped, endless])
async def test_dead_letter_has_the_users_lines_and_the_message_within_its_bound(fail):
    try:
        fail()
    except Exception as error:  # noqa: BLE001  any of them
        failure = error
    cause = Cause("retries_exhausted", "r" * 999, "h", 1, short_traceback(failure))
    letter = dead_letter_of(arrival(), cause, group="g", failed_at_ms=9)
    back = assert_small(letter)
    assert "test_dead_letter.py" in back.traceback
    assert str(failure)[:9] in back.traceback
    assert "worker/dispatch/dispatcher.py" not in back.traceback


def test_traceback_names_the_library_line_that_raised_and_the_cause():
    try:
        chained()
    except RuntimeError as error:
        account = short_traceback(error)
    assert account.index("JSONDecodeError") < account.index("RuntimeError: the answer of the fare")
    assert "decoder.py" in account
    assert "raise RuntimeError(" in account


@pytest.mark.parametrize("size", [1, 300, 10_000])
@pytest.mark.parametrize("char", ["x", "✓", "\udcff"])
def test_dead_letter_with_long_names_and_reason_keeps_to_the_bound(size, char):
    text = char * size
    letter = DeadLetter(
        group="workers",
        entry_id="1-1",
        code="c",
        reason=text,
        failed_at_ms=1,
        callback=b"x" * 70_000,
        session_uuid="s",
        event_name=text,
        handler=text,
        traceback=text,
        sequence_number=10**30,
        error_type=text,
        frame=text,
        group_key="abcdefg2",
        missing=tuple(range(10**18, 10**18 + 1_000)),
    )
    back = assert_small(letter)
    assert back.missing == letter.missing[-MISSING_MAX:]
    assert back.group_key == "abcdefg2"
    assert back.error_type
    assert back.frame
    assert (back.code, back.session_uuid, back.sequence_number) == ("c", "s", None)


async def test_exception_that_cannot_be_formatted_still_makes_a_dead_letter():
    class OddError(Exception):
        def __str__(self):
            raise SystemExit(1)

    cause = internal_error(OddError(), "ordering")
    letter = dead_letter_of(arrival(), cause, group="g", failed_at_ms=9)
    assert (letter.code, letter.session_uuid) == ("internal_error", "s")
    assert "OddError" in letter.reason
    assert_small(letter)
