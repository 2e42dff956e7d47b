"""Stream entries: from the bytes in the stream to an arrival with its event, or to a dead letter that says why not."""

from collections.abc import Sequence
from typing import Any, Final

from schemas.callback import CALLBACK_FIELD, decode_callback
from schemas.errors import UndecodableEntryError
from schemas.events import Event, SessionTimeout
from schemas.privacy import redact
from schemas.shapes import Shapes
from worker.deadletter import DeadLetter
from worker.reorder import Arrival
from worker.session import Entry

RECORDING_PREFIX: Final = "SessionRecording"

_decode: Final = Shapes().decode


def arrival_of(entry_id: str, fields: Sequence[bytes], *, recording_shared: bool) -> Arrival:
    """The arrival of an entry, an `Entry` as its payload. Raises UndecodableEntryError where it is no callback."""
    if len(fields) != 2 or fields[0] != CALLBACK_FIELD:
        raise UndecodableEntryError("foreign_entry", "the entry's fields are not those of a callback")
    callback = decode_callback(fields[1])
    event, fingerprint = _decode(callback)
    return Arrival(
        number=event.sequence_number,
        fingerprint=fingerprint,
        timestamp_us=_timestamp_us(event),
        recording=not recording_shared and event.event_name.startswith(RECORDING_PREFIX),
        ends_session=isinstance(event, SessionTimeout),
        arrived_ms=entry_ms(entry_id),
        payload=Entry(entry_id, fields[1], callback, event),
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


def _timestamp_us(event: Event) -> int | None:
    moment = event.event_timestamp
    return None if moment is None else round(moment.timestamp() * 1_000_000)


def _received_at_ms(value: Any) -> int | None:
    try:
        return decode_callback(value).received_at_ms
    except UndecodableEntryError:
        return None
