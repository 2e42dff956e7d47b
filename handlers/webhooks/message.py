"""Makes the body of a webhook from an event and its context. Pure.

Phone numbers stand in it as the endpoint's `numbers` says. With `tokens`, a number is also hidden where it stands
within another text: parameters that are no attribute are redacted as in logs, and the numbers of the event or the
summary wherever they are found.
"""

from typing import Any, Final

import msgspec

from maskline import Context
from maskline.events import EVENT_TYPES, CallSummary, Event, UnknownEvent
from maskline.schemas.call_summary import SUMMARY_NUMBER_FIELDS, Leg
from maskline.schemas.forward_message import (
    CallSummaryMessage,
    Delivery,
    EventData,
    ForwardMessage,
    Numbers,
)
from maskline.schemas.phone_numbers import PhoneNumbers
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

_KINDS: Final[tuple[type[Event], ...]] = (*EVENT_TYPES.values(), UnknownEvent)
_FIELDS: Final = {
    kind: tuple(name for name in EventData.__struct_fields__ if name in kind.__struct_fields__)
    for kind in _KINDS
}
_NUMBER_FIELDS: Final = ("from_number", "to_number", "first_party", "second_party")
_FREE_TEXTS: Final = (
    "pin_authentication_status",
    "plivo_hangup_cause",
    "recording_url",
    "recording_resource_url",
    "recording_format",
)
"""Attributes in which anything may stand. UUIDs are left as they are: receivers look things up by them."""


def message_of(
    event: Event | CallSummary, ctx: Context, numbers: Numbers
) -> ForwardMessage | CallSummaryMessage:
    """The message of an event or a call summary. `numbers`: how phone numbers stand in it."""
    delivery = Delivery(
        session_uuid=ctx.session_uuid,
        idempotency_key=ctx.idempotency_key,
        order=ctx.order,
        sequence_number=ctx.sequence_number,
        run=ctx.run,
        missing=ctx.missing,
        skipped=ctx.skipped,
        replayed=ctx.replayed,
        received_at=ctx.received_at,
    )
    if isinstance(event, CallSummary):
        summary = event if numbers == "plain" else _without_numbers(event)
        return CallSummaryMessage(
            timestamp=event.ended_at or ctx.received_at, data=summary, delivery=delivery
        )
    values = {name: getattr(event, name) for name in _FIELDS[type(event)]}
    name = event.event_name
    if numbers == "tokens":
        name = _hide_numbers(values).redact(name)
    return ForwardMessage(
        type=name,
        timestamp=event.event_timestamp or ctx.received_at,
        data=EventData(**values),
        delivery=delivery,
    )


def body_of(message: ForwardMessage | CallSummaryMessage) -> str:
    """The message as JSON."""
    return msgspec.json.encode(message).decode()


def _without_numbers(summary: CallSummary) -> CallSummary:
    """The summary with tokens in place of phone numbers."""
    known = PhoneNumbers()
    tokens: dict[str, str] = {}
    for field in SUMMARY_NUMBER_FIELDS:
        if (number := getattr(summary, field)) is not None:
            known.add(number)
            tokens[field] = number_token(number)
    return msgspec.structs.replace(
        summary,
        **tokens,
        hangup_cause=_redacted(summary.hangup_cause, known),
        pin_status=_redacted(summary.pin_status, known),
        first_party=_leg_without_numbers(summary.first_party, known),
        second_party=_leg_without_numbers(summary.second_party, known),
        recordings=tuple(
            msgspec.structs.replace(recording, url=_redacted(recording.url, known))
            for recording in summary.recordings
        ),
    )


def _leg_without_numbers(leg: Leg, known: PhoneNumbers) -> Leg:
    return msgspec.structs.replace(leg, hangup_cause=_redacted(leg.hangup_cause, known))


def _redacted(text: str | None, known: PhoneNumbers) -> str | None:
    return None if text is None else known.redact(text)


def _hide_numbers(values: dict[str, Any]) -> PhoneNumbers:
    """Replace phone numbers in the values of EventData by their tokens. Returns the event's own numbers."""
    known = PhoneNumbers()
    for field in _NUMBER_FIELDS:
        if (number := values[field]) is not None:
            known.add(number)
            values[field] = number_token(number)
    for field in _FREE_TEXTS:
        if (text := values.get(field)) is not None:
            values[field] = known.redact(text)
    if values["extra"]:
        values["extra"] = {
            redact(known.redact(name)): _hidden(name, value, known) for name, value in values["extra"].items()
        }
    return known


def _hidden(name: str, value: str | list[str], known: PhoneNumbers) -> str | list[str]:
    """An entry of `extra` without phone numbers. `name`: Plivo's name of the parameter."""
    if isinstance(value, list):
        return [str(_hidden(name, text, known)) for text in value]
    return number_token(value) if name in NUMBER_ATTRIBUTES else redact(known.redact(value))
