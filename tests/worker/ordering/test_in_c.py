"""The parts in C do what Python does, of everything; what is ordinary, they do. Not collected where there are none."""

from urllib.parse import urlencode

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from partition_kit import entry, make, take_in
from test_reorder_model import PLAIN, Spools, histories, long_histories, stamp
from test_state import NUMBERS as NATURALS
from test_state import STATES, rings

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.fastdecode.templates import LEARN_AFTER
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.commands import packing
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.native import order
from maskline.worker.native import packing as packing_in_c
from maskline.worker.ordering.reorder import NONE_WAITING, SessionOrder
from maskline.worker.ordering.state import (
    NEW_SESSION,
    RELEASED_BYTES,
    RELEASED_REMEMBERED,
    HandlerRetries,
    LaneState,
    SessionState,
    decode_state,
    encode_state,
)
from maskline.worker.partitions.session import LiveSession


def shown(outcome):
    """All of it, for comparing: releases and duplicates are equal only to themselves."""
    return type(outcome), *(getattr(outcome, field) for field in outcome.__struct_fields__)


def agree(history):
    """Two sessions take every arrival of a history, one of them with what is in C, and stay alike."""
    ours, theirs, spools = SessionOrder(), SessionOrder(), Spools(history)
    for arrival, watermarks in zip(history.arrivals, history.watermarks, strict=False):
        for watermark_ms in watermarks:
            ours.expire(watermark_ms, history.policy, spools)
            theirs.expire(watermark_ms, history.policy, spools)
        before = (ours.state, [*ours.waiting])
        outcomes = order.ordinary_outcomes(ours, arrival, history.policy)
        if outcomes is None:
            assert (ours.state, [*ours.waiting]) == before, "looked at, and left alone"
            outcomes = ours.arrive(arrival, history.policy, spools)
        expected = theirs.arrive(arrival, history.policy, spools)
        assert [shown(one) for one in outcomes] == [shown(one) for one in expected]
        assert (ours.state, [*ours.waiting]) == (theirs.state, [*theirs.waiting])
        assert (ours.waiting is NONE_WAITING) == (theirs.waiting is NONE_WAITING)


@settings(max_examples=examples(200))
@given(histories)
def test_arrivals_are_taken_as_python_takes_them(history):
    agree(history)


@settings(max_examples=40)
@given(long_histories())
def test_arrivals_beyond_what_is_remembered_are_taken_as_python_takes_them(history):
    agree(history)


def arrivals(*numbers, recording=False):
    drafts = [(number, b"%08d" % number, number, recording, False, True) for number in numbers]
    return stamp(drafts, [1] * len(drafts))


@pytest.mark.parametrize("recording", [False, True])
def test_due_and_waiting_arrivals_are_ordinary(recording):
    session = SessionOrder()
    some = arrivals(1, 2, 4, 5, 3, 7, 6, 8, recording=recording)
    outcomes = [order.ordinary_outcomes(session, arrival, PLAIN) for arrival in some]
    numbers = [[release.arrival.number for release in some] for some in outcomes]
    assert numbers == [[1], [2], [], [], [3, 4, 5], [], [6, 7], [8]]


@pytest.mark.parametrize(
    "state",
    [
        SessionState(status=LaneState(next=2, floor_us=1)),
        SessionState(status=LaneState(next=2, ending_us=9)),
        SessionState(status=LaneState(next=2, released=bytes(8) + b"00000002")),
        SessionState(status=LaneState(next=3)),
        SessionState(status=LaneState(run=1)),
    ],
)
def test_arrival_in_an_unusual_lane_is_not_ordinary(state):
    (arrival,) = arrivals(2)
    session = SessionOrder(state)
    assert order.ordinary_outcomes(session, arrival, PLAIN) is None
    assert session.state is state


def test_undecided_arrival_is_left_to_python():
    session, python = SessionOrder(), SessionOrder()
    again, due = stamp(
        [(1, b"altered!", 9, False, False, False), (3, b"00000003", 10, False, False, False)], [9, 1]
    )
    for arrival in arrivals(1, 2):
        order.ordinary_outcomes(session, arrival, PLAIN)
        python.arrive(arrival, PLAIN)
    assert order.ordinary_outcomes(session, again, PLAIN) is None
    assert [*session.arrive(again, PLAIN), *python.arrive(again, PLAIN)] == []
    assert order.ordinary_outcomes(session, due, PLAIN) is None, "the one that is undecided is late with it"
    assert [release.order for release in session.arrive(due, PLAIN)] == ["in_order", "late"]


def test_objects_of_other_types_are_left_to_python():
    (arrival,) = arrivals(1)
    assert order.ordinary_outcomes(SessionOrder(), object(), PLAIN) is None
    assert order.ordinary_outcomes(object(), arrival, PLAIN) is None
    assert order.ordinary_outcomes(SessionOrder(object()), arrival, PLAIN) is None


KINDS = st.sampled_from(
    [
        "SessionFirstPartyRinging",
        "SessionTimeout",
        "SessionRecordingCompleted",
        "SessionRecordingNew",
        "Odd",
        "",
    ]
)
TIMES = st.sampled_from(["2026-01-05 09:00:02 +0000 UTC", "2026-01-05 09:00:03 +0000 UTC", "null", "soon"])
NUMBERS = st.sampled_from(["1", "2", "null", "x", str(2**53)])
FORMS = st.fixed_dictionaries(
    {"EventName": KINDS, "SessionUUID": st.sampled_from(["s", "t", "u", "s", "t", ""])},
    optional={
        "EventTimestamp": TIMES,
        "SequenceNumber": NUMBERS,
        "Odd": st.sampled_from(["1", "+44 7700 900123"]),
    },
)
BODIES = FORMS.map(lambda form: urlencode(form).encode())
NOW_MS = 1_767_225_600_000
ORDINARY = st.builds(
    RawCallback,
    st.just("POST"),
    st.just(b""),
    st.just(FORM_TYPE),
    BODIES,
    st.just(NOW_MS),
    st.just("MA1"),
    st.booleans(),
)
ODD = st.builds(
    RawCallback,
    st.sampled_from(["POST", "POST", "GET", "PUT"]),
    st.sampled_from([b"", b"", b"a=b", b"EventName=SessionTimeout&SessionUUID=q"]),
    st.sampled_from([FORM_TYPE, FORM_TYPE, "", "text/plain", f"{FORM_TYPE}; charset=utf-8"]),
    BODIES,
    st.sampled_from([0, 1, 2**32 - 1, 2**32, NOW_MS, 2**63, 2**64 - 1]),
    st.sampled_from(["", "MA1", "M" * 31, "M" * 32, "é"]),
    st.booleans(),
    st.sampled_from([1, 1, 0, 2]),
)


def torn(encoded, at, instead):
    """Some of its bytes are others: those before the body, or those after it."""
    at %= len(encoded)
    return encoded[:at] + instead + encoded[at + len(instead) :]


ENCODED = ORDINARY.map(encode_callback)
ANY_VALUE = st.one_of(
    ODD.map(encode_callback),
    st.builds(
        torn, ENCODED, st.one_of(st.integers(0, 45), st.integers(-16, -1)), st.binary(min_size=1, max_size=2)
    ),
    st.builds(lambda encoded, size: encoded[:size], ENCODED, st.integers(0, 400)),
)
FOREIGN = st.lists(st.sampled_from([CALLBACK_FIELD, b"d", b""]), max_size=3)
FIELDS = st.sampled_from([ENCODED, ENCODED, ENCODED, ANY_VALUE, FOREIGN]).flatmap(
    lambda values: values if values is FOREIGN else values.map(lambda value: [CALLBACK_FIELD, value])
)
IDS = st.builds(
    lambda ms, sequence: b"%d-%d" % (ms, sequence),
    st.sampled_from([NOW_MS, NOW_MS, NOW_MS, 0, 1, 10**15 - 1, 10**15, 2**63]),
    st.integers(0, 3),
)
ENTRIES = st.lists(st.tuples(IDS, FIELDS), max_size=12)


def told(decoded):
    ids, those, unknown, refused = decoded
    return (
        ids,
        [plainly(one) for one in those],
        unknown,
        [(*one[:2], str(one[2]), one[2].code) for one in refused],
    )


def plainly(arrival):
    return [shown(one) for one in (structs.replace(arrival, payload=None), arrival.payload)]


DECODERS = [EntryDecoder(frozenset(ignored)) for ignored in ((), ("Odd", "EventTimestamp", "a"))]


@settings(max_examples=examples(200))
@given(
    ENTRIES,
    st.booleans(),
    st.sampled_from([{}, {"s": None}, {"s": None, "t": None, "u": None}]),
    st.sampled_from(DECODERS),
)
def test_entries_are_decoded_as_python_decodes_them(some, shared, known, decoder):
    for _ in range(LEARN_AFTER + 1):  # until the template is learned, and after
        expected = told(decoder.decode_in_python(some, shared, known))
        assert told(decoder.decode(some, shared, known)) == expected


@pytest.mark.parametrize("name", ["SessionRecordingCompleted", "SessionRecordingNew"])
def test_an_ordinary_entry_is_decoded_without_python(monkeypatch, name):
    some = [entry(7, EventName=name, SequenceNumber=3, SessionUUID="s")]
    decoder = EntryDecoder(frozenset())
    for _ in range(LEARN_AFTER):
        decoder.decode(some, False, {})
    monkeypatch.setattr(decoder.callbacks, "decode", None)
    ids, (arrival,), unknown, refused = decoder.decode(some, False, {})
    assert (ids, unknown, refused) == ([some[0][0].decode()], ["s"], [])
    assert arrival.payload.event.event_name == name
    assert (arrival.number, arrival.recording, arrival.ends_session) == (3, True, False)


PLAIN_STATES = st.builds(
    SessionState,
    status=st.builds(
        LaneState,
        next=NATURALS,
        run=NATURALS,
        opening=NATURALS,
        released=rings(RELEASED_BYTES),
        top_us=NATURALS,
    ),
)
EDGES = [
    number for bits in (7, 8, 16, 32, 62) for number in (2**bits - 1, 2**bits, 2**bits + 1) if number <= 2**62
]


def read(decode, encoded):
    try:
        return decode(encoded)
    except ValueError:
        return None


@settings(max_examples=examples(500))
@given(st.lists(st.one_of(PLAIN_STATES, STATES), max_size=5))
def test_states_are_packed_as_python_packs_them(states):
    assert packing.pack_states(states) == packing.pack_states_in_python(states)
    again = [decode_state(encode_state(state)) for state in states]
    assert packing.pack_states(again) == packing.pack_states_in_python(states), "also where nothing is shared"


def test_a_state_that_an_older_release_wrote_is_left_to_python():
    state = SessionState(status=LANE)
    older = b"\x95" + encode_state(state)[1:-1]
    assert decode_state(older) == state
    assert packing_in_c.decode_ordinary_state(older) is None


@pytest.mark.parametrize("number", EDGES)
@pytest.mark.parametrize("of", ["next", "run", "opening", "top_us"])
def test_numbers_of_every_size_are_written_and_read(number, of):
    plain = LaneState(1, 0, 1, b"", 0)
    state = SessionState(status=structs.replace(plain, **{of: number}))
    assert packing.pack_states([state]) == packing.pack_states_in_python([state])
    assert packing_in_c.decode_ordinary_state(encode_state(state)) == state


LANE = LaneState(2, 0, 1, bytes(RELEASED_BYTES), 7)


@pytest.mark.parametrize(
    "odd",
    [
        *[{name: None} for name in ("next", "opening", "top_us")],
        *[{name: 9} for name in ("floor_us", "ending_us")],
        {"top_us": -(10**15)},
        {"recording": LANE},
        {"unsequenced": bytes(8)},
        {"closed": True},
        {"retries": {"h": HandlerRetries(waiting=1)}},
        {"retries": {}},
    ],
    ids=str,
)
def test_unusual_state_is_packed_by_python(odd):
    lane = {name: value for name, value in odd.items() if name in LaneState.__struct_fields__}
    rest = {name: value for name, value in odd.items() if name not in lane}
    state = SessionState(status=structs.replace(LANE, **lane), **rest)
    plain = SessionState(status=LANE)
    states = [plain, state, plain]
    assert packing.pack_states(states) == packing.pack_states_in_python(states)
    assert packing_in_c.decode_ordinary_state(encode_state(plain)) == plain
    assert packing_in_c.decode_ordinary_state(encode_state(state)) is None


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_ring_that_is_full_or_longer_is_written_and_read(more):
    released = bytes(RELEASED_BYTES * (RELEASED_REMEMBERED + more))
    state = SessionState(status=structs.replace(LANE, released=released))
    assert packing.pack_states([state]) == packing.pack_states_in_python([state])
    assert packing_in_c.decode_ordinary_state(encode_state(state)) == state


def test_state_that_is_no_bytes_is_not_read():
    assert packing_in_c.decode_ordinary_state(None) is None
    for odd in ({"unsequenced": None}, {"status": structs.replace(LANE, released=None)}, {"version": True}):
        states = [structs.replace(SessionState(status=LANE), **odd)]
        assert packing.pack_states(states) == packing.pack_states_in_python(states)


@pytest.mark.parametrize("damage", [{"next": 2**62 + 1}, {"released": bytes(RELEASED_BYTES + 1)}], ids=str)
def test_bytes_that_are_no_state_are_left_to_python(damage):
    damaged = encode_state(SessionState(status=structs.replace(LANE, **damage)))
    assert read(decode_state, damaged) is None
    assert packing_in_c.decode_ordinary_state(damaged) is None


@given(PLAIN_STATES)
def test_ordinary_state_is_read_in_c_and_shares_its_empty_lane(state):
    found = packing_in_c.decode_ordinary_state(encode_state(state))
    assert found == state
    assert found.recording is NEW_SESSION.recording


@settings(max_examples=examples(500))
@given(STATES)
def test_a_state_is_read_as_python_reads_it_or_left_alone(state):
    assert packing_in_c.decode_ordinary_state(encode_state(state)) in (None, state)


@settings(max_examples=examples(1_000))
@given(
    PLAIN_STATES.map(encode_state), st.integers(0, 1_000), st.binary(min_size=0, max_size=3), st.booleans()
)
def test_damage_is_read_as_python_reads_it_or_left_alone(encoded, at, instead, cut):
    at %= len(encoded)
    damaged = encoded[:at] + instead + (b"" if cut else encoded[at + len(instead) :])
    assert packing_in_c.decode_ordinary_state(damaged) in (None, read(decode_state, damaged))


@given(st.binary(max_size=64))
def test_garbage_state_is_left_to_python(garbage):
    assert packing_in_c.decode_ordinary_state(garbage) in (None, read(decode_state, garbage))


@given(st.text(max_size=20), st.lists(st.text(max_size=40), max_size=5))
def test_keys_are_packed_as_python_packs_them(prefix, names):
    for those in (names, dict.fromkeys(names)):
        assert packing.pack_keys(prefix, those) == packing.pack_keys_in_python(prefix, those)


@pytest.mark.parametrize("encoded", [None, encode_state(SessionState(status=LaneState(2, 0, 1, b"", 7)))])
def test_a_session_is_made_as_python_makes_it(encoded):
    partition, some = make(), [entry(0, SequenceNumber=9)]
    take_in(partition, some, states={"s": encoded})
    (found,) = partition._sessions.values()
    expected = partition.load_session("s", encoded)
    expected.arrive(found.waiting[0], PLAIN)
    expected.touched_ms = found.touched_ms
    expected.gap_ends_ms = found.gap_ends_ms
    for name in (*SessionOrder.__slots__, *LiveSession.__slots__):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.scheduled is expected.scheduled is False


def idle_sessions(partition, *names):
    return {name: partition.load_session(name, None) for name in names}


def test_idle_sessions_without_retry_queues_are_dropped():
    partition = make()
    sessions = idle_sessions(partition, "s", "t", "u", "v")
    sessions["u"].retries = {}
    assert order.evict_idle(sessions, 4, {}, ()) == 2, "the first that is not idle is left to Python"
    assert [*sessions] == ["u", "v"]


@pytest.mark.parametrize("retries", [{"h": HandlerRetries(waiting=1)}, {"h": HandlerRetries(skipped=(1,))}])
def test_a_session_with_retry_queues_is_loaded_by_python(monkeypatch, retries):
    partition = make()
    state = SessionState(status=structs.replace(LANE, next=2), retries=retries)
    loaded = []
    load_session = partition.load_session
    monkeypatch.setattr(
        type(partition), "load_session", lambda self, *given: loaded.append(given) or load_session(*given)
    )
    take_in(partition, [entry(0, SequenceNumber=2)], states={"s": encode_state(state)})
    assert [uuid for uuid, _ in loaded] == ["s"]
