import re
from datetime import datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import decode_event
from maskline.schemas.events import EVENT_TYPES
from maskline.schemas.privacy import NUMBER_ATTRIBUTES

FICTION = re.compile(r"\+?(1[2-9]\d\d55501\d\d|447700900\d\d\d)\Z")
OLD_ONLY = {"SessionFirstPartyHangup", "SessionSecondPartyHangup"}
NEW_ONLY = {
    f"Session{side}Party{what}"
    for side in ("First", "Second")
    for what in ("Initiated", "Complete", "Failed")
}

options = st.builds(
    SessionOptions,
    calls_min=st.just(1),
    calls_max=st.integers(1, 5),
    first_sequence=st.integers(0, 3),
    recording_sequence=st.sampled_from(("own", "shared")),
    restart_numbering=st.booleans(),
    vocabulary=st.sampled_from(("old", "new", "both")),
)


def many(count=300, **kwargs):
    return [make_session(1, index, SessionOptions(**kwargs)) for index in range(count)]


@settings(max_examples=50)
@given(st.integers(0, 2**40), st.integers(0, 10_000), options)
def test_same_seed_same_session(seed, index, session_options):
    once = make_session(seed, index, session_options)
    assert [list(event.parameters.items()) for event in once] == [
        list(event.parameters.items()) for event in make_session(seed, index, session_options)
    ]
    other = make_session(seed, index + 1, session_options)
    assert other[0].session_uuid != once[0].session_uuid


def test_every_event_of_both_vocabularies_appears():
    seen = {event.event_name for session in many() for event in session}
    assert seen == set(EVENT_TYPES)


def test_session_has_one_vocabulary():
    for session in many(100):
        names = {event.event_name for event in session}
        assert not (names & OLD_ONLY and names & NEW_ONLY)
    assert not {e.event_name for s in many(100, vocabulary="old") for e in s} & NEW_ONLY
    assert not {e.event_name for s in many(100, vocabulary="new") for e in s} & OLD_ONLY


def test_numbers_are_fiction():
    names = {*NUMBER_ATTRIBUTES, "VirtualNumber"}
    found = [
        value
        for session in many()
        for event in session
        for name, value in event.parameters.items()
        if name in names
    ]
    assert len(set(found)) > 100
    assert all(FICTION.match(value) for value in found)


def test_nulls_occur_in_every_spelling():
    spelled = {
        event.parameters.get("SequenceNumber")
        for session in many()
        for event in session
        if event.lane == "unsequenced"
    }
    assert spelled == {None, "", "null", "None", "NULL", "none"}


@settings(max_examples=50)
@given(st.integers(0, 1000), options)
def test_events_are_numbered_by_lane_and_run(index, session_options):
    session = make_session(7, index, session_options)
    following: dict[tuple[str, int], int] = {}
    for event in session:
        if event.lane == "unsequenced":
            continue
        assert event.parameters["SequenceNumber"] == str(event.number)
        key = event.lane, event.run
        assert event.opens == (key not in following)
        assert event.number == following.get(key, session_options.first_sequence)
        following[key] = event.number + 1
        if session_options.recording_sequence == "shared":
            assert event.lane == "status"
        else:
            assert (event.lane == "recording") == ("Recording" in event.event_name)
    runs = {run for _, run in following}
    assert session_options.restart_numbering or runs == {0}
    assert not any(event.ends_session for event in session[:-1])


def test_numbering_starts_again_with_each_call():
    sessions = many(50, calls_min=3, calls_max=3, restart_numbering=True)
    for session in sessions:
        openings = [event for event in session if event.opens and event.lane == "status"]
        assert [event.number for event in openings] == [1, 1, 1]
        assert [event.run for event in openings] == [0, 1, 2]


@pytest.mark.parametrize("restart", [False, True])
def test_every_attribute_is_readable_and_no_two_callbacks_are_equal(restart):
    """Every attribute can be read, times grow with the session, no two callbacks of a session are equal."""
    for session in many(150, restart_numbering=restart):
        times: list[datetime] = []
        fingerprints = set()
        for event in session:
            body = "&".join(f"{k}={v.replace('+', '%2B')}" for k, v in event.parameters.items()).encode()
            decoded = decode_event(RawCallback("POST", b"", "", body, 0, ""))
            assert decoded.event.event_name == event.event_name
            assert decoded.event.problems == ()
            assert decoded.event.extra == {}
            assert decoded.event.sequence_number == event.number
            assert decoded.event.event_timestamp is not None
            times.append(decoded.event.event_timestamp)
            fingerprints.add(decoded.fingerprint)
        assert all(before < after for before, after in pairwise(times))
        assert len(fingerprints) == len(session)


def test_costs_and_recordings_occur():
    events = [event.parameters for session in many(50) for event in session]
    charged = [e for e in events if e["EventName"] == "SessionPartiesHangup"]
    assert all(re.match(r"\d+\.\d{5}\Z", e["Amount"]) for e in charged)
    assert all(int(e["BilledDuration"]) >= int(e["Duration"]) for e in charged)
    assert all(int(e["BilledDuration"]) % 60 == 0 for e in charged)
    recorded = [e for e in events if e["EventName"] == "SessionRecordingCompleted"]
    assert recorded
    assert all(e["RecordingURL"].endswith(e["RecordingFormat"]) for e in recorded)
