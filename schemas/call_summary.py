"""The event CallSummary: one call of a masking session, after its end. `handlers.call_summary` emits it.

A summary is no callback of Plivo's, and so no `Event`: `@on(CallSummary)` gets it, `@on.every` does not. It is emitted
again, with the next `revision`, if something arrives later that changes it. As JSON it has the names of the fields
below, and `EventName` and `SessionUUID` as Plivo's events have them.
"""

from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from maskline.schemas.events import Event, Moment, OfSession, Seconds
from maskline.schemas.privacy import number_token, redact

EndedBy = Literal["parties_hangup", "both_legs", "next_call", "session_timeout", "silence"]
"""What showed that the call is over (the table in `schemas.calls.call_end`)."""

LegOutcome = Literal["answered", "unanswered", "failed"]

RecordingStatus = Literal["initiated", "completed", "failed"]


class Leg(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One party's part in a call. A value is None where no event that arrived tells it."""

    initiated_at: Moment | None = None
    ringing_at: Moment | None = None
    answered_at: Moment | None = None
    """Of the party that called the virtual number: when its call landed there."""
    ended_at: Moment | None = None
    outcome: LegOutcome | None = None
    ring_s: Seconds | None = None
    """Seconds from ringing to the answer, or to the end of a leg that was not answered."""
    talk_s: Seconds | None = None
    """Seconds from the answer to the end."""
    hangup_cause: str | None = None
    hangup_cause_code: int | None = None


class RecordingSummary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A recording of a call."""

    recording_uuid: str | None = None
    url: str | None = None
    duration_s: Seconds | None = None
    status: RecordingStatus


class CallRecord(OfSession, frozen=True, kw_only=True, gc=False):
    """A call, as the events that have arrived tell it. A value is None where none of them tells it."""

    call: int
    """1, 2, …: the call's place in its session."""
    complete: bool
    """Every number between its first and last event arrived."""
    missing: tuple[int, ...] = ()
    """The SequenceNumbers that did not arrive."""
    started_at: Moment | None = None
    ended_at: Moment | None = None
    first_party_number: str | None = None
    """A real phone number: `repr` and logs show its token."""
    second_party_number: str | None = None
    virtual_number: str | None = None
    first_party: Leg = Leg()
    second_party: Leg = Leg()
    answered: bool = False
    """Both parties were connected."""
    duration_s: Seconds | None = None
    billed_duration_s: Seconds | None = None
    amount: Decimal | None = None
    """The total charge of the call."""
    hangup_cause: str | None = None
    hangup_cause_code: int | None = None
    pin_failures: int = 0
    """Wrong PINs that were reported of it."""
    pin_status: str | None = None
    """The last one reported: `success`, `failed` or `AuthorizedCaller`."""
    recordings: tuple[RecordingSummary, ...] = ()

    @property
    def call_key(self) -> str:
        """`<SessionUUID>:call:<call>`: one record per call. Upsert by it; the greatest revision wins."""
        return f"{self.session_uuid}:call:{self.call}"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that are not at their defaults, for `repr` and `rich`: phone numbers, and
        texts that look like one, as tokens.
        """
        shown: list[tuple[str, Any]] = []
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name in SUMMARY_NUMBER_FIELDS:
                value = number_token(value)
            elif isinstance(value, str) and field.name != "virtual_number":
                value = redact(value)
            shown.append((field.name, value))
        return shown

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
        )


class CallSummary(CallRecord, frozen=True, kw_only=True, gc=False, tag="CallSummary", tag_field="EventName"):
    """A call that is over."""

    revision: int
    """1, 2, …: grows when something arrives late; a store keeps the greatest."""
    ended_by: EndedBy

    @property
    def event_name(self) -> str:
        """`CallSummary`."""
        return "CallSummary"

    @property
    def sequence_number(self) -> None:
        """None: a summary has no place among Plivo's numbers."""
        return


Handled = Event | CallSummary
"""What a handler is called with."""

SUMMARY_NUMBER_FIELDS: Final = ("first_party_number", "second_party_number")
"""The fields that hold real phone numbers."""

encode_summary: Final = msgspec.json.Encoder(decimal_format="string").encode
"""CallSummary to JSON: the same bytes for equal summaries."""

_decoder = msgspec.json.Decoder(CallSummary)


def decode_summary(text: bytes | str) -> CallSummary:
    """The CallSummary that `encode_summary` wrote. Raises msgspec.MsgspecError for any other text."""
    return _decoder.decode(text)
