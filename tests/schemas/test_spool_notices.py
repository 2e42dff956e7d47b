"""Spool notices: what is written is read back, and anything else that lies in the stream is passed over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.spool_notices import NOTICES_MAX, SpoolNotice, read_notice, write_notice

NODE = "web-1:/var/lib/maskline/spool-maskline-0.db"


def entry_of(command):
    """The fields of the entry that a command writes, as a server returns them."""
    return [str(field).encode() for field in command[5:]]


@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.none() | st.integers(0, 10**14),
    st.integers(0, 2**47),
)
def test_what_is_written_is_read_back(node, held_ms, at_ms):
    fields = entry_of(write_notice("{maskline:3}:spooled", node, held_ms))
    assert read_notice(b"%d-7" % at_ms, fields) == SpoolNotice(node, at_ms, held_ms)


def test_stream_is_bounded():
    assert write_notice("key", NODE, None)[:5] == ("XADD", "key", "MAXLEN", NOTICES_MAX, "*")


def test_clock_that_has_gone_back_makes_no_negative_age():
    assert write_notice("key", NODE, -5)[-1] == 0


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"node", b"n"],
        [b"held_ms", b"1"],
        [b"node", b"", b"held_ms", b"1"],
        [b"node", b"n", b"held_ms", b"-1"],
        [b"node", b"n", b"held_ms", b"soon"],
        [b"node", b"n", b"held_ms", b"9" * 5_000],
        [b"node"],
    ],
)
def test_anything_else_is_no_notice(fields):
    assert read_notice(b"5-0", fields) is None
