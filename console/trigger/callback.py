"""Makes the callback of `maskline trigger`: what was given, and realistic values for what was not. Pure.

Names are Plivo's, of attributes also ours (`from_number`). One that neither knows is refused with the nearest ones, as
it is a typing error nearly always; `--unknown` sends it as Plivo may send it one day. Phone numbers are from a range
that is kept for fiction, and the same for the whole session.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from zlib import crc32

from maskline.console.output import printable
from maskline.console.simulate.sessions import FAILURES, NORMAL_HANGUP
from maskline.schemas.decode import event_from_pairs
from maskline.schemas.errors import ConfigError, UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES, STATUS_ATTRIBUTES
from maskline.worker.api.spelling import did_you_mean
from maskline.worker.entries.decode import RECORDING_PREFIX

UNSEQUENCED: Final = frozenset({"SessionPinAuthenticationStatus", "SessionParamUpdate", "SessionTimeout"})
"""Events whose SequenceNumber is null, by Plivo's documentation."""

TALK_S: Final = 72
VIRTUAL_NUMBER: Final = "+14155550150"
REPLACED_NUMBER: Final = "+14155550151"
_NEW_WORDS: Final = ("Initiated", "Complete", "Failed")
"""How party events end that only Plivo's newer pages have, where the parties are FirstParty and SecondParty."""


def check_names(event_name: str, given: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest names, for an event or an attribute that Plivo does not document."""
    if event_name not in EVENT_TYPES:
        raise ConfigError(_unknown("Plivo documents no event", event_name, EVENT_TYPES))
    known = ATTRIBUTES if event_name.startswith(RECORDING_PREFIX) else STATUS_ATTRIBUTES
    names = {"EventName", *known.values()}
    for name in given:
        if name not in names:
            raise ConfigError(_unknown(f"{event_name} has no attribute", name, [*known, *names]))


def read_attributes(words: Iterable[str]) -> dict[str, str]:
    """The attributes of the command line, `Name=value` each, by Plivo's names. Raises ConfigError."""
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"trigger: an attribute is Name=value, not {printable(word)!r}")
        name = ATTRIBUTES.get(name, name)
        if name in given:
            raise ConfigError(f"trigger: {printable(name)} is given twice")
        given[name] = value
    return given


def make_pairs(
    event_name: str, given: Mapping[str, str], session_uuid: str, number: int | None, now: datetime
) -> list[tuple[str, str]]:
    """The parameters of the callback. `number`: its SequenceNumber, if none is given; `now`: its EventTimestamp."""
    values = {
        "EventName": event_name,
        # To the microsecond: the same callback twice in a second is otherwise a duplicate.
        "EventTimestamp": f"{now.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}",
        "SessionUUID": session_uuid,
        **_parties(event_name, session_uuid),
        "VirtualNumber": VIRTUAL_NUMBER,
        "SequenceNumber": "" if number is None else str(number),
        **_values(event_name, session_uuid, now),
        **given,
    }
    if "Duration" in given and "BilledDuration" not in given and given["Duration"].isdecimal():
        values["BilledDuration"] = _billed(int(given["Duration"]))
    return list(values.items())


def unreadable_names(pairs: Sequence[tuple[str, str]]) -> Sequence[str]:
    """The attributes that handlers get as None, as their values cannot be read. By Plivo's names."""
    try:
        return event_from_pairs(list(pairs)).problems
    except UndecodableEntryError:  # the outcome says that it is given up
        return ()


def _parties(event_name: str, session_uuid: str) -> dict[str, str]:
    """+1 415 555 01xx, which nobody has; the virtual numbers are not among them."""
    at = crc32(session_uuid.encode())
    first, second = f"+14155550{100 + at % 50}", f"+14155550{152 + at // 50 % 48}"
    if "Party" in event_name and event_name.endswith(_NEW_WORDS):
        return {"FirstParty": first, "SecondParty": second}
    return {"From": first, "To": second}


def _values(event_name: str, session_uuid: str, now: datetime) -> dict[str, str]:
    ended = {"Duration": str(TALK_S), "BilledDuration": _billed(TALK_S)}
    match event_name:
        case "SessionPartiesHangup":
            return {"Amount": "0.02200", **ended, **_cause(NORMAL_HANGUP)}
        case "SessionPinAuthenticationStatus":
            return {"PinAuthenticationStatus": "success", "PinRetryCounter": "0"}
        case "SessionVirtualNumberReplaced":
            return {"VirtualNumber": REPLACED_NUMBER}
    if event_name.startswith(RECORDING_PREFIX):
        return _recording(event_name, session_uuid, now)
    if event_name.endswith(("Hangup", "Complete")):
        return {**ended, **_cause(NORMAL_HANGUP)}
    return _cause(FAILURES[0]) if event_name.endswith("Failed") else {}


def _recording(event_name: str, session_uuid: str, now: datetime) -> dict[str, str]:
    if event_name == "SessionRecordingFailed":
        return {}
    values = {"RecordingUUID": session_uuid}
    if event_name == "SessionRecordingCompleted":
        began = datetime.fromtimestamp(now.timestamp() - TALK_S, UTC)
        values |= {
            "RecordingURL": f"https://media.example.com/Recording/{session_uuid}.mp3",
            "RecordingResourceURL": f"https://api.example.com/v1/Account/EXAMPLE/Recording/{session_uuid}/",
            "RecordingDuration": str(TALK_S),
            "RecordingStartTime": f"{began:%Y-%m-%d %H:%M:%S.%f}",
            "RecordingEndTime": f"{now.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}",
            "RecordingFormat": ".mp3",
        }
    return values


def _billed(talked_s: int) -> str:
    """Plivo bills by the started minute."""
    return str(-(-talked_s // 60) * 60)


def _cause(cause: tuple[str, int]) -> dict[str, str]:
    return {"PlivoHangupCause": cause[0], "PlivoHangupCauseCode": str(cause[1])}


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"trigger: {what} {printable(name)!r}{did_you_mean(name, known)} (--unknown sends it all the same)"
