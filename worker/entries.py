"""Stream entries: from the bytes in the stream to an arrival with its event, or to a dead letter that says why not."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from schemas.callback import CALLBACK_FIELD, decode_callback
from schemas.errors import UndecodableEntryError
from schemas.events import EVENT_TYPES, Event, SessionTimeout, UnknownEvent
from schemas.memo import Memo
from schemas.privacy import redact
from schemas.shapes import REMEMBERED, Shapes
from worker.deadletter import DeadLetter
from worker.reorder import Arrival
from worker.session import Entry

RECORDING_PREFIX: Final = "SessionRecording"

_RECORDING: Final = frozenset(kind for name, kind in EVENT_TYPES.items() if name.startswith(RECORDING_PREFIX))

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_decode: Final = Shapes().decode


def arrival_of(entry_id: str, fields: Sequence[bytes], recording_shared: bool) -> Arrival:
    """The arrival of an entry, an `Entry` as its payload. Raises UndecodableEntryError where it is no callback."""
    if len(fields) != 2 or fields[0] != CALLBACK_FIELD:
        raise UndecodableEntryError("foreign_entry", "the entry's fields are not those of a callback")
    callback = decode_callback(fields[1])
    event, fingerprint = _decode(callback)
    moment, kind = event.event_timestamp, event.__class__
    return Arrival(  # by place: by name it takes twice as long
        event.sequence_number,
        fingerprint,
        None if moment is None else _timestamps_us[moment],
        not recording_shared and (kind in _RECORDING or (kind is UnknownEvent and _is_recording(event))),
        kind is SessionTimeout,
        int(entry_id.partition("-")[0]),
        Entry(entry_id, fields[1], callback.received_at_ms, callback.replayed, event),
    )


def letter_of_undecodable(
    entry_id: str, fields: Sequence[bytes], error: UndecodableEntryError, *, group: str, now_ms: int
) -> DeadLetter:
    """The dead letter of an entry that `arrival_of` refuses; `fields` may be empty if they are gone."""
    ours = len(fields) == 2 and fields[0] == CALLBACK_FIELD
    return DeadLetter(
        group=group,
        entry_id=entry_id,
        code=error.code,
        reason=redact(f"{error.code.replace('_', ' ')}: {error.detail}"),
        failed_at_ms=now_ms,
        callback=fields[1] if ours else b"",
        received_at_ms=_received_at_ms(fields[1]) if ours else None,
        foreign_fields=[] if ours else list(zip(fields[::2], fields[1::2], strict=False)),
    )


def entry_ms(entry_id: str) -> int:
    """The time in the ID of a stream entry, milliseconds."""
    return int(entry_id.partition("-")[0])


def _is_recording(event: Event) -> bool:
    kind = event.__class__
    return kind in _RECORDING or (kind is UnknownEvent and event.event_name.startswith(RECORDING_PREFIX))


def _timestamp_us(moment: datetime) -> int:
    """Microseconds since the epoch."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_timestamps_us: Final = Memo(_timestamp_us, REMEMBERED)
"""Remembered, as the moments themselves are."""


def _received_at_ms(value: Any) -> int | None:
    try:
        return decode_callback(value).received_at_ms
    except UndecodableEntryError:
        return None
