from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.ordering.state import (
    FINGERPRINT_BYTES,
    NEW_SESSION,
    RELEASED_BYTES,
    RELEASED_REMEMBERED,
    SKIPPED_MAX,
    STATE_VERSION,
    HandlerRetries,
    LaneState,
    SessionState,
    decode_state,
    encode_state,
    remember_released,
    remember_unsequenced,
    was_number_released,
    was_released,
    was_released_unsequenced,
)

NUMBERS = st.integers(0, 2**53)
MOMENTS = st.one_of(st.none(), st.integers(-(2**55), 2**55))
FINGERPRINTS = st.binary(min_size=FINGERPRINT_BYTES, max_size=FINGERPRINT_BYTES)


def rings(entry_bytes: int) -> st.SearchStrategy[bytes]:
    entry = st.binary(min_size=entry_bytes, max_size=entry_bytes)
    return st.lists(entry, max_size=RELEASED_REMEMBERED).map(b"".join)


LANES = st.builds(
    LaneState,
    next=st.one_of(st.none(), NUMBERS),
    run=st.integers(0, 100),
    opening=st.one_of(st.none(), NUMBERS),
    released=rings(RELEASED_BYTES),
    top_us=MOMENTS,
    floor_us=MOMENTS,
    ending_us=MOMENTS,
)
RETRIES = st.builds(
    HandlerRetries,
    waiting=NUMBERS,
    parked=st.booleans(),
    skipped=st.lists(NUMBERS, max_size=SKIPPED_MAX).map(tuple),
)
STATES = st.builds(
    SessionState,
    retries=st.one_of(st.none(), st.dictionaries(st.text(max_size=30), RETRIES, max_size=3)),
    status=LANES,
    recording=LANES,
    unsequenced=rings(FINGERPRINT_BYTES),
    closed=st.booleans(),
)


@given(STATES)
def test_a_state_comes_back_as_it_was(state: SessionState) -> None:
    assert decode_state(encode_state(state)) == state


def test_a_new_session_is_small() -> None:
    assert decode_state(encode_state(NEW_SESSION)) == NEW_SESSION
    assert len(encode_state(NEW_SESSION)) < 32


def test_what_earlier_releases_wrote_is_read() -> None:
    """Such a state lies in Redis for a day: a run that was ending on any number that was passed, one that was empty."""
    released = (1).to_bytes(8, "big") + b"one one "
    written = (
        bytes.fromhex("950197 0400 01 c410") + released + bytes.fromhex("1e c0 64 97c000c0c400c0c0c0 c400 c2")
    )
    ending = LaneState(4, 0, 1, released, top_us=30, ending_us=100)
    assert decode_state(written) == SessionState(status=ending)
    written = (
        bytes.fromhex("950197 c001 c0 c410") + released + bytes.fromhex("1e 1e c0 97c000c0c400c0c0c0 c400 c3")
    )
    empty = LaneState(None, 1, None, released, top_us=30, floor_us=30)
    assert decode_state(written) == SessionState(status=empty, closed=True)


def test_a_state_with_retry_queues_is_read_by_releases_that_know_none() -> None:
    """Workers of two releases share a namespace while one is deployed."""

    class OlderState(msgspec.Struct, array_like=True):
        version: int
        status: LaneState
        recording: LaneState
        unsequenced: bytes
        closed: bool

    lane = LaneState(2, 0, 1, bytes(16), 7)
    written = encode_state(SessionState(status=lane, retries={"h": HandlerRetries(1, True, (4,))}))
    assert msgspec.msgpack.decode(written, type=OlderState).status == lane


@pytest.mark.parametrize(
    ("retries", "blocks"),
    [
        (HandlerRetries(), False),
        (HandlerRetries(skipped=(1, 2)), False),
        (HandlerRetries(waiting=1), True),
        (HandlerRetries(parked=True), True),
        (HandlerRetries(2, True, (1,)), True),
    ],
)
def test_a_queue_blocks_while_something_waits_or_it_is_parked(retries: HandlerRetries, blocks: bool) -> None:
    assert retries.blocks == blocks


def with_retries(retries: object) -> bytes:
    return msgspec.msgpack.encode([*msgspec.structs.astuple(NEW_SESSION)[:-1], retries])


@given(st.binary(max_size=64))
def test_garbage_raises_only_value_error(encoded: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(decode_state(encoded), SessionState)


def damaged(**lane: object) -> bytes:
    status = {**msgspec.structs.asdict(LaneState()), **lane}
    return msgspec.msgpack.encode(
        [STATE_VERSION, [*status.values()], [*msgspec.structs.astuple(LaneState())]]
    )


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encode_state(NEW_SESSION)[:-1], id="cut short"),
        pytest.param(encode_state(NEW_SESSION) + b"\x00", id="something behind"),
        pytest.param(msgspec.msgpack.encode({"version": 1}), id="a map"),
        pytest.param(damaged(next=-1), id="a negative number"),
        pytest.param(damaged(run=2**62 + 1), id="a number that could not be counted on"),
        pytest.param(
            b"\x96" + encode_state(NEW_SESSION)[1:] + b"\x91" * 100_000 + b"\xc0", id="nested beyond reading"
        ),
        pytest.param(damaged(run="0"), id="text for a number"),
        pytest.param(damaged(released=b"x" * (RELEASED_BYTES + 1)), id="a ring of one entry and a bit"),
        pytest.param(
            encode_state(SessionState(unsequenced=b"x" * (FINGERPRINT_BYTES - 1))), id="part of a fingerprint"
        ),
        pytest.param(with_retries([]), id="queues of no handler"),
        pytest.param(with_retries({1: []}), id="a handler without a name"),
        pytest.param(with_retries({"h": [-1]}), id="fewer than none wait"),
        pytest.param(with_retries({"h": ["1"]}), id="a text waits"),
        pytest.param(with_retries({"h": [1, 1]}), id="a number says whether it is parked"),
        pytest.param(with_retries({"h": [0, False, 7]}), id="one number is skipped and no list"),
        pytest.param(with_retries({"h": [0, False, [-1]]}), id="a negative number is skipped"),
        pytest.param(with_retries({"h": [0, False, [1] * (SKIPPED_MAX + 1)]}), id="too many are skipped"),
    ],
)
def test_bytes_that_are_no_state_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="not a session state"):
        decode_state(encoded)


@pytest.mark.parametrize(
    "rest", [[], ["another", "shape"], [*msgspec.structs.astuple(NEW_SESSION)[1:], 1, 2]]
)
def test_state_of_another_version_is_refused_and_its_version_named(rest: list[object]) -> None:
    with pytest.raises(ValueError, match=f"version 2, and this release reads {STATE_VERSION}"):
        decode_state(msgspec.msgpack.encode([STATE_VERSION + 1, *rest]))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((b"a" * 8, b"b" * 8, bytes(8)))), max_size=150))
def test_lane_ring_remembers_the_last_64_releases(history: list[tuple[int, bytes]]) -> None:
    ring = b""
    for number, fingerprint in history:
        ring = remember_released(ring, number, fingerprint)
    remembered = history[-RELEASED_REMEMBERED:]
    for number in range(5):
        assert was_number_released(ring, number) == (number in [known for known, _ in remembered])
        for fingerprint in (b"a" * 8, b"b" * 8, bytes(8), b"c" * 8):
            assert was_released(ring, number, fingerprint) == ((number, fingerprint) in remembered)


@given(st.lists(FINGERPRINTS, max_size=150), FINGERPRINTS)
def test_unsequenced_ring_remembers_the_last_64_releases(history: list[bytes], other: bytes) -> None:
    ring = b""
    for fingerprint in history:
        ring = remember_unsequenced(ring, fingerprint)
    remembered = history[-RELEASED_REMEMBERED:]
    for fingerprint in (*history, other):
        assert was_released_unsequenced(ring, fingerprint) == (fingerprint in remembered)


def test_fingerprint_across_two_ring_entries_does_not_match() -> None:
    ring = remember_unsequenced(remember_unsequenced(b"", b"abcdefgh"), b"ijklmnop")
    assert not was_released_unsequenced(ring, b"efghijkl")
    released = remember_released(remember_released(b"", 7, b"abcdefgh"), 8, b"ijklmnop")
    assert not was_released(released, 7, b"efgh" + bytes(4))
    assert not was_released(released, 7, (8).to_bytes(8, "big"))
    assert was_released(released, 8, b"ijklmnop")
