"""The stream's format: what is written is read, by later releases too; anything else is named foreign."""

import io
import json

import msgspec
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from maskline.schemas.callback import CALLBACK_VERSION, RawCallback, decode_callback, encode_callback
from maskline.schemas.errors import UndecodableEntryError

many = settings(max_examples=examples(200), deadline=None)


@many
@given(
    st.builds(
        RawCallback,
        method=st.text(),
        query=st.binary(),
        content_type=st.text(),
        body=st.binary(),
        received_at_ms=st.integers(-(2**63), 2**63 - 1),
        auth_id=st.text(),
        replayed=st.booleans(),
    )
)
def test_encoded_callback_decodes_to_itself(callback):
    assert decode_callback(encode_callback(callback)) == callback


def test_bytes_of_version_1_stay():
    callback = RawCallback("POST", b"a=1", "text/x", b"b", 1_700_000_000_000, "MA1", replayed=True)
    array = ["POST", b"a=1", "text/x", b"b", 1_700_000_000_000, "MA1", True, 1]
    assert encode_callback(callback) == msgspec.msgpack.encode(array)
    assert decode_callback(msgspec.msgpack.encode(array[:6])) == RawCallback(*array[:6])


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00",
        b"text",
        json.dumps({"a": 1}).encode(),
        b"\xff" * 9,
        msgspec.msgpack.encode(["POST"]),
        msgspec.msgpack.encode([1, 2, 3, 4, 5, 6]),
        b"\x96\xa1\xff" + b"\xc0" * 5,
        encode_callback(RawCallback("GET", b"", "", b"", 1, "", version=CALLBACK_VERSION + 1)),
        b"\x99" + encode_callback(RawCallback("GET", b"", "", b"", 1, ""))[1:] + b"\x91" * 100_000 + b"\xc0",
    ],
)
def test_foreign_value_is_refused(value):
    with pytest.raises(UndecodableEntryError) as caught:
        decode_callback(value)
    assert caught.value.code == "foreign_entry"


@many
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_foreign(value):
    try:
        outcome = type(decode_callback(value)).__name__
    except UndecodableEntryError as error:
        outcome = error.code
    assert outcome in {"RawCallback", "foreign_entry"}


def test_repr_of_a_callback_shows_no_phone_number():
    callback = RawCallback("POST", b"From=14155550123", "x", b"To=14155550124", 1, "MA1")
    screen = io.StringIO()
    Console(file=screen, width=1_000).print(callback)
    for text in (repr(callback), f"{callback}", screen.getvalue()):
        assert "415555" not in text
        assert "MA1" in text
