"""The 21 events of Plivo's Number Masking, and UnknownEvent for those that are not documented yet.

Each event is a frozen struct, and all are one union that is tagged by `EventName`. Plivo says that every event posts
the same attributes, so a base class has them, and another base those of recording events alone. Attributes are Plivo's
names in snake case (ATTRIBUTES has both). `repr` never shows a real phone number, because it ends up in logs and
tracebacks.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta

from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

STATUS_ATTRIBUTES: Final = {
    "session_uuid": "SessionUUID",
    "event_timestamp": "EventTimestamp",
    "sequence_number": "SequenceNumber",
    "from_number": "From",
    "to_number": "To",
    "first_party": "FirstParty",
    "second_party": "SecondParty",
    "virtual_number": "VirtualNumber",
    "pin_authentication_status": "PinAuthenticationStatus",
    "pin_retry_counter": "PinRetryCounter",
    "amount": "Amount",
    "billed_duration": "BilledDuration",
    "duration": "Duration",
    "plivo_hangup_cause": "PlivoHangupCause",
    "plivo_hangup_cause_code": "PlivoHangupCauseCode",
}
"""Attributes of every event: our name to Plivo's."""

RECORDING_ATTRIBUTES: Final = {
    "recording_uuid": "RecordingUUID",
    "recording_url": "RecordingURL",
    "recording_resource_url": "RecordingResourceURL",
    "recording_duration": "RecordingDuration",
    "recording_start_time": "RecordingStartTime",
    "recording_end_time": "RecordingEndTime",
    "recording_format": "RecordingFormat",
}
"""Attributes that only recording events have: our name to Plivo's."""

ATTRIBUTES: Final = STATUS_ATTRIBUTES | RECORDING_ATTRIBUTES

Moment = Annotated[datetime, Meta(tz=True, description="In UTC.")]
Seconds = Annotated[int, Meta(description="Seconds.")]


class OfSession(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    gc=False,
    rename={"session_uuid": STATUS_ATTRIBUTES["session_uuid"]},
):
    """What handlers are called with belongs to a session. In all of it `session_uuid` lies at the same place, where the
    parts in C read it without asking for the type.
    """

    session_uuid: str


class Event(
    OfSession, frozen=True, kw_only=True, gc=False, tag=True, tag_field="EventName", rename=ATTRIBUTES
):
    """The attributes of every event. One is None if Plivo sent nothing, a null, or a text that cannot be read."""

    event_timestamp: Moment | None = None
    sequence_number: int | None = None
    """The callback's place in its session; None makes the event unsequenced."""
    from_number: str | None = None
    to_number: str | None = None
    first_party: str | None = None
    second_party: str | None = None
    virtual_number: str | None = None
    pin_authentication_status: str | None = None
    """`success`, `failed` or `AuthorizedCaller`."""
    pin_retry_counter: int | None = None
    amount: Decimal | None = None
    """The total charge of the call."""
    billed_duration: Seconds | None = None
    duration: Seconds | None = None
    plivo_hangup_cause: str | None = None
    plivo_hangup_cause_code: int | None = None
    extra: dict[str, str | list[str]] = {}
    """Texts of parameters that are no attribute or could not be read, by Plivo's names; a list if sent repeatedly."""
    problems: tuple[str, ...] = ()
    """Plivo's names of the attributes that could not be read; their texts are in `extra`."""

    @property
    def event_name(self) -> str:
        """Plivo's name of the event."""
        return str(type(self).__struct_config__.tag)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Names and values of the attributes that are set, for `repr` and `rich`: phone numbers, and texts that look
        like one, as tokens.
        """
        shown: list[tuple[str, Any]] = []
        if isinstance(self, UnknownEvent):
            shown.append(("event_name", redact(self.event_name)))
        for field, plivo_name in ATTRIBUTES.items():
            value = getattr(self, field, None)
            if value is None:
                continue
            if plivo_name in NUMBER_ATTRIBUTES:
                value = number_token(value)
            elif isinstance(value, str) and field != "virtual_number":
                value = redact(value)
            shown.append((field, value))
        if self.extra:
            shown.append(("extra", {redact(name): _shown(name, value) for name, value in self.extra.items()}))
        if self.problems:
            shown.append(("problems", self.problems))
        return shown

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


def _shown(name: str, value: str | list[str]) -> str | list[str]:
    """An entry of `extra` as `repr` may show it."""
    hide = number_token if name in NUMBER_ATTRIBUTES else redact
    return [hide(text) for text in value] if isinstance(value, list) else hide(value)


class StatusEvent(Event, frozen=True, kw_only=True):
    """Reports what happened to a session or its calls."""


class _WithRecording(Event, frozen=True, kw_only=True):
    recording_uuid: str | None = None
    recording_url: str | None = None
    recording_resource_url: str | None = None
    recording_duration: Seconds | None = None
    recording_start_time: Moment | None = None
    recording_end_time: Moment | None = None
    recording_format: str | None = None
    """`.mp3` or `.wav`."""


class RecordingEvent(_WithRecording, frozen=True, kw_only=True):
    """Reports what happened to the recording of a call."""


class UnknownEvent(_WithRecording, frozen=True, kw_only=True):
    """An event that Plivo does not document (yet), with all its parameters."""

    event_name: str
    """Plivo's name of the event, as sent."""


class SessionFirstPartyInitiated(StatusEvent, frozen=True):
    """The call attempt to the first party starts."""


class SessionFirstPartyRinging(StatusEvent, frozen=True):
    """The first party's phone rings."""


class SessionFirstPartyAnswer(StatusEvent, frozen=True):
    """The first party answers."""


class SessionFirstPartyHangup(StatusEvent, frozen=True):
    """The first party disconnects."""


class SessionFirstPartyComplete(StatusEvent, frozen=True):
    """The first party disconnects (Plivo's newer pages)."""


class SessionFirstPartyFailed(StatusEvent, frozen=True):
    """The first party's call fails."""


class SessionSecondPartyInitiated(StatusEvent, frozen=True):
    """The call attempt to the second party starts."""


class SessionSecondPartyRing(StatusEvent, frozen=True):
    """The second party's phone rings."""


class SessionSecondPartyAnswer(StatusEvent, frozen=True):
    """The second party answers."""


class SessionSecondPartyHangup(StatusEvent, frozen=True):
    """The second party disconnects."""


class SessionSecondPartyComplete(StatusEvent, frozen=True):
    """The second party disconnects (Plivo's newer pages)."""


class SessionSecondPartyFailed(StatusEvent, frozen=True):
    """The second party's call fails."""


class SessionVirtualNumberAnswer(StatusEvent, frozen=True):
    """A party's call lands on the virtual number."""


class SessionPartiesHangup(StatusEvent, frozen=True):
    """The call in the session is done."""


class SessionVirtualNumberReplaced(StatusEvent, frozen=True):
    """An unhealthy virtual number was replaced; `virtual_number` is the new one."""


class SessionPinAuthenticationStatus(StatusEvent, frozen=True):
    """A PIN was right or wrong, or an authorised caller called. Unsequenced."""


class SessionParamUpdate(StatusEvent, frozen=True):
    """Parameters of the session changed. Unsequenced."""


class SessionTimeout(StatusEvent, frozen=True):
    """The session expired. Unsequenced."""


class SessionRecordingInitiated(RecordingEvent, frozen=True):
    """Both parties are connected, recording begins."""


class SessionRecordingCompleted(RecordingEvent, frozen=True):
    """One party disconnected, the recording is done."""


class SessionRecordingFailed(RecordingEvent, frozen=True):
    """A recording was asked for but could not start."""


AnyEvent = (
    SessionFirstPartyInitiated
    | SessionFirstPartyRinging
    | SessionFirstPartyAnswer
    | SessionFirstPartyHangup
    | SessionFirstPartyComplete
    | SessionFirstPartyFailed
    | SessionSecondPartyInitiated
    | SessionSecondPartyRing
    | SessionSecondPartyAnswer
    | SessionSecondPartyHangup
    | SessionSecondPartyComplete
    | SessionSecondPartyFailed
    | SessionVirtualNumberAnswer
    | SessionPartiesHangup
    | SessionVirtualNumberReplaced
    | SessionPinAuthenticationStatus
    | SessionParamUpdate
    | SessionTimeout
    | SessionRecordingInitiated
    | SessionRecordingCompleted
    | SessionRecordingFailed
    | UnknownEvent
)
"""Every concrete event, for `match` and for msgspec, which tells them apart by their tag."""

MAY_OPEN_CALL: Final[frozenset[type[Event]]] = frozenset(
    (
        SessionFirstPartyInitiated,
        SessionFirstPartyRinging,
        SessionSecondPartyInitiated,
        SessionSecondPartyRing,
        SessionVirtualNumberAnswer,
        UnknownEvent,
    )
)
"""Status events that may be the first of a call, because they report the beginning of a leg. Plivo's pages differ: the
older ones have no `…Initiated`, and there an incoming call lands on the virtual number or shows by the party that is
dialled. All others report the progress of a leg, a call or the session, so they follow another event. A name that is
not documented may be a new first event, as `…Initiated` once was."""

MAY_OPEN_RECORDING: Final[frozenset[type[Event]]] = frozenset(
    (SessionRecordingInitiated, SessionRecordingFailed, UnknownEvent)
)
"""Recording events that may be the first where they are numbered apart: a recording begins, or could not begin."""

EVENT_TYPES: Final[dict[str, type[Event]]] = {
    event_type.__name__: event_type for event_type in get_args(AnyEvent) if event_type is not UnknownEvent
}
"""The documented events by their EventName."""
