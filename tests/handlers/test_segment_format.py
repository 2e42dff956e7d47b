"""Segments: what was written is read, and what is torn, changed or foreign is told from it."""

import contextlib
import os
from hashlib import sha256

import msgspec
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.handlers.segments.errors import ArchiveKeyError, DamagedSegmentError
from maskline.handlers.segments.names import TIME_MAX_MS, SegmentName, TimeRange
from maskline.handlers.segments.record import ArchivedCallback, encode_record
from maskline.handlers.segments.sealing import key_id
from maskline.handlers.segments.segment import END, VERSION, Head, Segment, encode_segment
from maskline.schemas.callback import RawCallback

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
HEAD = Head(VERSION, 1_700_000_000_000, "w", 1, "archive", "plain")

callbacks = st.builds(
    RawCallback,
    st.sampled_from(["POST", "GET"]),
    st.binary(max_size=40),
    st.text(max_size=10),
    st.binary(max_size=200),
    st.integers(0, 2**53),
    st.text(max_size=5),
)
records = st.lists(
    st.builds(ArchivedCallback, st.integers(0, 16_383), st.integers(0, 10**13).map("{}-0".format), callbacks),
    min_size=1,
    max_size=8,
)


def segment_of(kept, key=None):
    return encode_segment(HEAD, [encode_record(one) for one in kept], (1, 2), key)


def resealed(data):
    """The bytes with the checksum that they would have, had they been written so."""
    whole = data[: -32 - len(END)]
    return whole + sha256(whole).digest() + END


def read(data, *keys):
    return [*Segment(data, keys).records()]


@settings(max_examples=12)
@given(records, st.sampled_from([None, KEY]))
def test_what_was_written_is_read(kept, key):
    assert read(segment_of(kept, key), OTHER, KEY) == kept


def test_a_large_segment_has_several_chunks(monkeypatch):
    monkeypatch.setattr("maskline.handlers.segments.segment.CHUNK_RAW_BYTES", 100)
    kept = [ArchivedCallback(1, f"{n}-0", RawCallback("POST", b"", "", b"x" * 50, n, "")) for n in range(20)]
    assert read(segment_of(kept, KEY), KEY) == kept


KEPT = [ArchivedCallback(3, "5-0", RawCallback("POST", b"", "", os.urandom(90), 5, "MA"))]


@pytest.mark.parametrize("key", [None, KEY])
def test_no_record_is_taken_of_a_file_that_is_torn_or_changed(key):
    data = segment_of(KEPT, key)
    for end in range(len(data)):
        with pytest.raises(DamagedSegmentError):
            read(data[:end], KEY)
    for place in range(len(data)):
        with pytest.raises(DamagedSegmentError):
            read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], KEY)
    with pytest.raises(DamagedSegmentError):
        read(data + b"more", KEY)


@settings(max_examples=30)
@given(st.data())
def test_a_file_with_any_content_is_read_or_named_damaged(data):
    """Also where the checksum is right: then it is the encryption that notices, or the reading itself."""
    whole = bytearray(segment_of(KEPT, data.draw(st.sampled_from([None, KEY]))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(8, len(whole) - 41))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DamagedSegmentError, ArchiveKeyError):
        read(resealed(bytes(whole)), KEY)


def test_chunks_of_an_encrypted_segment_cannot_be_left_out_moved_or_taken_from_another(monkeypatch):
    monkeypatch.setattr("maskline.handlers.segments.segment.CHUNK_RAW_BYTES", 1)
    kept = [KEPT[0], msgspec.structs.replace(KEPT[0], entry_id="6-0")]
    data, other = segment_of(kept, KEY), segment_of(kept, KEY)

    def parts(whole):
        at = 12 + int.from_bytes(whole[8:12], "big")
        found = [whole[:at]]
        while at < len(whole) - 40:
            length = 5 + int.from_bytes(whole[at + 1 : at + 5], "big")
            found.append(whole[at : at + length])
            at += length
        return [*found, whole[at:]]

    head, one, two, footer, tail = parts(data)
    for changed in (
        [head, two, one, footer],
        [head, one, footer],
        [head, one, two],
        [parts(other)[0], one, two, footer],
        [head, one, parts(other)[2], footer],
        [head, one, two, two, footer],
    ):
        with pytest.raises(DamagedSegmentError):
            read(resealed(b"".join([*changed, tail])), KEY)
    assert read(resealed(b"".join([head, one, two, footer, tail])), KEY) == kept


def test_a_wrong_key_is_one_clear_line_that_names_both():
    data = segment_of(KEPT, KEY)
    with pytest.raises(ArchiveKeyError, match=f"needs the key {key_id(KEY)}, and there is {key_id(OTHER)}"):
        read(data, OTHER)
    with pytest.raises(ArchiveKeyError, match="and there is none"):
        read(data)


def test_nothing_of_a_callback_is_readable_in_an_encrypted_segment():
    kept = [ArchivedCallback(1, "1-0", RawCallback("POST", b"", "", b"From=%2B14155550123", 1, "MA1"))]
    assert b"4155550123" not in segment_of(kept, KEY)
    assert segment_of(kept, KEY) != segment_of(kept, KEY)


moments = st.integers(0, TIME_MAX_MS)


@settings(max_examples=examples(100))
@given(moments, moments, st.text("az09", min_size=1, max_size=10), st.integers(0, 10**9))
def test_names_say_what_they_were_given_and_sort_by_time(closed_ms, earliest_ms, writer, number):
    name = SegmentName(closed_ms, earliest_ms, writer, number)
    assert SegmentName.read(name.path) == name
    later = name._replace(closed_ms=min(closed_ms + 1, TIME_MAX_MS), earliest_ms=0, number=0)
    assert later.path >= name.path or closed_ms == TIME_MAX_MS
    day = name.path.rpartition("/")[0]
    assert TimeRange(since_ms=closed_ms).may_hold_day(day)


@pytest.mark.parametrize(
    "path", ["", "a", "2026/11/30/x.segment", "20269999T000000000Z-20260101T000000000Z-a-000001.segment"]
)
def test_other_files_have_no_segments_name(path):
    assert SegmentName.read(path) is None


def test_a_range_of_time_leaves_out_what_cannot_be_in_it():
    name = SegmentName(closed_ms=2_000, earliest_ms=1_000, writer="w", number=1)
    assert TimeRange(None, None).may_hold(name)
    assert TimeRange(2_000, 1_001).may_hold(name)
    assert not TimeRange(2_001, None).may_hold(name)
    assert not TimeRange(None, 1_000).may_hold(name)
    assert not TimeRange(1_800_000_000_000, None).may_hold_day("2026/11/30")
    assert TimeRange(1_796_000_000_000, None).may_hold_day("2026/11/30")
    assert not TimeRange().may_hold_day("lost+found/1/1")
