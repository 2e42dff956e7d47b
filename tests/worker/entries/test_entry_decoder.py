"""What an entry is to the order: its lane, and whether it may open a run there."""

import pytest
from partition_kit import entry

from maskline.schemas.events import EVENT_TYPES
from maskline.worker.entries.decode import EntryDecoder

OPENING_CALLS = {
    "SessionFirstPartyInitiated",
    "SessionFirstPartyRinging",
    "SessionSecondPartyInitiated",
    "SessionSecondPartyRing",
    "SessionVirtualNumberAnswer",
    "SessionOfTomorrow",
}
OPENING_RECORDINGS = {"SessionRecordingInitiated", "SessionRecordingFailed", "SessionRecordingOfTomorrow"}
NAMES = [*EVENT_TYPES, "SessionOfTomorrow", "SessionRecordingOfTomorrow"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("way", ["decode", "decode_in_python"])
@pytest.mark.parametrize("name", NAMES)
def test_which_events_may_open_a_run(name, way, shared):
    decode = getattr(EntryDecoder(frozenset()), way)
    for _ in range(6):  # until its template is learned, and after
        _, (arrival,), _, _ = decode([entry(1, EventName=name, SequenceNumber=1)], shared, {})
        recording = name.startswith("SessionRecording")
        assert arrival.recording == (recording and not shared)
        if recording and not shared:
            assert arrival.may_open == (name in OPENING_RECORDINGS)
        else:
            assert arrival.may_open == (name in OPENING_CALLS or name == "SessionRecordingOfTomorrow")
