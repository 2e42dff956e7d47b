import msgspec
import pytest
from dispatch_kit import START_MS, Dispatch

from schemas import SessionFirstPartyRinging
from schemas.callback import decode_callback
from worker import on
from worker.deadletter import (
    TRACEBACK_MAX_CHARS,
    DeadLetter,
    decode_dead_letter,
    encode_dead_letter,
    letter_of,
    public_id,
    split_public_id,
)
from worker.outcome import Verdict

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
)


@pytest.mark.parametrize("letter", [LEAST, FULL])
def test_comes_back_as_it_was(letter):
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


def test_what_is_not_there_takes_no_room():
    assert set(msgspec.msgpack.decode(encode_dead_letter(LEAST))) == {
        "group", "entry_id", "code", "reason", "failed_at_ms", "callback",
    }  # fmt: skip


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"group": 1}), b"d"])
def test_anything_else_is_refused(value):
    with pytest.raises(msgspec.MsgspecError):
        decode_dead_letter(value)


def test_repr_shows_no_number():
    shown = repr(FULL)
    assert "900123" not in shown
    assert "callback=20" in shown
    assert "foreign_fields=1" in shown
    assert "settle" in shown
    assert str(FULL) == shown


@pytest.mark.parametrize(("partition", "entry_id"), [(0, "1-1"), (63, "1767225600000-0"), (16_383, "5-12")])
def test_public_ids(partition, entry_id):
    assert split_public_id(public_id(partition, entry_id)) == (partition, entry_id)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1-2", "1-2-", "-1-2-3", "1-2--3", "a-1-1", "1-1-a", "1-2-3-4"),
        *(" 1-2-3", "1-2-3\n", "1-+2-3", "1_0-2-3", "٣-1-1"),
    ],
)
def test_no_public_ids(text):
    with pytest.raises(ValueError, match="dead letter"):
        split_public_id(text)


def released():
    @on(SessionFirstPartyRinging)
    async def handle(event, ctx):
        pass

    d = Dispatch(handle)
    (session,) = d.arrive(("s", 1), From="%2B447700900123")
    return session.queue[0]


async def test_a_letter_has_the_callback_byte_for_byte():
    letter = letter_of(
        released(), Verdict(None, "rejected", "no"), group="g", handler="h", attempts=1, failure=None, failed_at_ms=9
    )  # fmt: skip
    assert decode_callback(letter.callback).body.endswith(b"From=%2B447700900123")
    assert (letter.group, letter.failed_at_ms, letter.traceback) == ("g", 9, None)


@pytest.mark.parametrize("shift", [0, 1, 7, 13, 20, 27])
async def test_a_traceback_keeps_its_end_within_bounds_and_no_number_not_even_the_half_of_one(shift):
    text = " ".join(["+44 7700 900123"] * 20_000) + "x" * shift + " the end \udcff"
    letter = letter_of(
        released(), Verdict(None, "c", "r"), group="g", handler="h", attempts=1, failed_at_ms=9,
        failure=ValueError(text),
    )  # fmt: skip
    assert letter.traceback is not None
    assert len(letter.traceback) <= TRACEBACK_MAX_CHARS
    assert letter.traceback.rstrip().endswith("the end \\udcff")
    assert "900123" not in letter.traceback
    assert "7700" not in letter.traceback
    encode_dead_letter(letter)
