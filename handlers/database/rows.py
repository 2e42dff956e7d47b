"""Makes rows of events and of call summaries. Pure.

A row is a tuple in the order of the types `event_row` and `call_summary_row` of the migrations, the texts first. A few
values can be sent by Plivo and not be held by PostgreSQL: NUL in a text, and half a surrogate pair. A row is not
searched for them, as that would cost more than the rest; `with_substitutes` replaces them once PostgreSQL has refused
a row.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec

from maskline import Context
from maskline.events import CallSummary, Event, RecordingEvent, UnknownEvent
from maskline.schemas.phone_numbers import PhoneNumbers
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

Row = tuple[Any, ...]

EVENT_COLUMNS: Final = (
    *("session_uuid", "idempotency_key", "event_name", "sequence_order", "entry_id"),
    *("from_number", "to_number", "first_party", "second_party", "virtual_number"),
    *("pin_authentication_status", "plivo_hangup_cause"),
    *("recording_uuid", "recording_url", "recording_resource_url", "recording_format", "extra"),
    *("day", "received_at", "event_timestamp", "sequence_number", "run", "missing", "skipped"),
    *("attempt", "replayed", "fencing_token", "pin_retry_counter", "amount", "billed_duration", "duration"),
    *("plivo_hangup_cause_code", "recording_duration", "recording_start_time", "recording_end_time"),
    *("problems", "substituted"),
)

_LEG: Final = (
    *("initiated_at", "ringing_at", "answered_at", "ended_at", "outcome", "ring_s", "talk_s"),
    *("hangup_cause", "hangup_cause_code"),
)

SUMMARY_COLUMNS: Final = (
    *("call_key", "session_uuid", "ended_by", "hangup_cause", "pin_status"),
    *("first_party_number", "second_party_number", "virtual_number", "recordings"),
    *("call", "revision", "complete", "missing", "started_at", "ended_at", "answered"),
    *("duration_s", "billed_duration_s", "amount", "hangup_cause_code", "pin_failures"),
    *(f"first_party_{name}" for name in _LEG),
    *(f"second_party_{name}" for name in _LEG),
    *("received_at", "fencing_token", "substituted"),
)

DAY: Final = EVENT_COLUMNS.index("day")
"""The columns before it are the texts."""
JSON_COLUMNS: Final = frozenset({"extra", "recordings"})
"""Sent as text that is JSON."""

ROW_BYTES: Final = 400
"""What a row takes beside its texts, rounded up."""

TOKENS_CACHED_MAX: Final = 4_096
"""Numbers whose token is remembered: the sessions under way have the same ones again and again."""

CAUSES_CACHED_MAX: Final = 256
"""Hangup causes: Plivo documents some thirty."""

SIGN_FOR_NUL: Final = "\u2400"
SIGN_FOR_SURROGATE: Final = "\ufffd"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


_NO_RECORDING: Final[Row] = (None,) * 7

SizedRow = tuple[Row, int]
"""A row, and about how many bytes it takes. No class: rows are made for every event."""


class RowBuilder:
    """Makes rows. `plain_numbers`: phone numbers as they are, not their tokens."""

    def __init__(self, *, plain_numbers: bool) -> None:
        self._plain = plain_numbers
        self._number: Callable[[str], str] = (
            str if plain_numbers else lru_cache(TOKENS_CACHED_MAX)(number_token)
        )
        self._cause: Callable[[str], str] = str if plain_numbers else lru_cache(CAUSES_CACHED_MAX)(redact)

    def event_row(self, event: Event, ctx: Context) -> SizedRow:
        """The row of an event."""
        number, received_at = self._number, ctx.received_at
        uuid, url, resource_url, recording_format, recording_duration, recording_begun, recording_ended = (
            self._recording(event) if isinstance(event, (RecordingEvent, UnknownEvent)) else _NO_RECORDING
        )
        event_name, cause = event.event_name, event.plivo_hangup_cause
        if not self._plain and isinstance(event, UnknownEvent):
            event_name = redact(event_name)
        from_number, to_number = event.from_number, event.to_number
        first_party, second_party = event.first_party, event.second_party
        row: Row = (
            event.session_uuid,
            ctx.idempotency_key,
            event_name,
            ctx.order,
            ctx.entry_id,
            None if from_number is None else number(from_number),
            None if to_number is None else number(to_number),
            None if first_party is None else number(first_party),
            None if second_party is None else number(second_party),
            event.virtual_number,
            event.pin_authentication_status,
            None if cause is None else self._cause(cause),
            uuid,
            url,
            resource_url,
            recording_format,
            self._extra(event) if event.extra else None,
            received_at.date(),
            received_at,
            event.event_timestamp,
            ctx.sequence_number,
            ctx.run,
            ctx.missing or None,
            ctx.skipped or None,
            ctx.attempt,
            ctx.replayed,
            ctx.fencing_token,
            event.pin_retry_counter,
            event.amount,
            event.billed_duration,
            event.duration,
            event.plivo_hangup_cause_code,
            recording_duration,
            recording_begun,
            recording_ended,
            event.problems or None,
            None,
        )
        return row, ROW_BYTES + sum(map(len, filter(None, row[:DAY])))

    def summary_row(self, summary: CallSummary, ctx: Context) -> SizedRow:
        """The row of a call."""
        row: Row = (
            summary.call_key,
            summary.session_uuid,
            summary.ended_by,
            _applied(self._cause, summary.hangup_cause),
            summary.pin_status,
            _applied(self._number, summary.first_party_number),
            _applied(self._number, summary.second_party_number),
            summary.virtual_number,
            _json(msgspec.to_builtins(summary.recordings)) if summary.recordings else None,
            summary.call,
            summary.revision,
            summary.complete,
            summary.missing or None,
            summary.started_at,
            summary.ended_at,
            summary.answered,
            summary.duration_s,
            summary.billed_duration_s,
            summary.amount,
            summary.hangup_cause_code,
            summary.pin_failures,
            *msgspec.structs.astuple(summary.first_party),
            *msgspec.structs.astuple(summary.second_party),
            ctx.received_at,
            ctx.fencing_token,
            None,
        )
        return row, ROW_BYTES + sum(len(value) for value in row if isinstance(value, str))

    def _recording(self, event: RecordingEvent | UnknownEvent) -> Row:
        url, resource_url = event.recording_url, event.recording_resource_url
        if not self._plain:  # only the event's own numbers are hidden: a link needs its other digits
            hide = _known_numbers(event).redact
            url, resource_url = _applied(hide, url), _applied(hide, resource_url)
        return (
            event.recording_uuid,
            url,
            resource_url,
            event.recording_format,
            event.recording_duration,
            event.recording_start_time,
            event.recording_end_time,
        )

    def _extra(self, event: Event) -> str:
        """`extra` as JSON, without numbers: those of the event in any spelling, and whatever else looks like one."""
        if self._plain:
            return _json(event.extra)
        known = _known_numbers(event)

        def hidden(text: str) -> str:
            return redact(known.redact(text))

        return _json(
            {
                hidden(name): _each(number_token if name in NUMBER_ATTRIBUTES else hidden, value)
                for name, value in event.extra.items()
            }
        )


def with_substitutes(columns: tuple[str, ...], row: Row) -> Row:
    """The row with signs in place of what PostgreSQL's texts cannot hold, named in its column `substituted`.

    The same row if it has nothing of the kind.
    """
    values = list(row)
    changed: list[str] = []
    for place, (name, value) in enumerate(zip(columns, row, strict=True)):
        if not isinstance(value, str):
            continue
        mended = _json(_mended(json.loads(value))) if name in JSON_COLUMNS else _mended(value)
        if mended != value:
            values[place] = mended
            changed.append(name)
    if not changed:
        return row
    values[columns.index("substituted")] = changed
    return tuple(values)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub(SIGN_FOR_SURROGATE, value.replace("\0", SIGN_FOR_NUL))
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _each(hide: Callable[[str], str], value: str | list[str]) -> str | list[str]:
    return [hide(text) for text in value] if isinstance(value, list) else hide(value)


def _known_numbers(event: Event) -> PhoneNumbers:
    """The event's own numbers, which are found in any spelling."""
    known = PhoneNumbers()
    for number in (event.from_number, event.to_number, event.first_party, event.second_party):
        if number is not None:
            known.add(number)
    return known


def _applied(number: Callable[[str], str], text: str | None) -> str | None:
    return None if text is None else number(text)


def _json(value: Any) -> str:
    """As text that can always be encoded: half a surrogate pair is escaped."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
