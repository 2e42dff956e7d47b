"""Decodes stream entries: each becomes an arrival with its event, or is refused, and the dead letter says why.

`worker.native.entries` does the same in C, and comes back to `EntryDecoder.arrival_of` for all that is not ordinary.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from maskline.schemas.bounded_cache import BoundedCache
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.callback import CALLBACK_FIELD, decode_callback
from maskline.schemas.decode import NONE_IGNORED
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import (
    EVENT_TYPES,
    MAY_OPEN_CALL,
    MAY_OPEN_RECORDING,
    Event,
    SessionTimeout,
    UnknownEvent,
)
from maskline.schemas.fastdecode.plan import CACHED_VALUES_MAX
from maskline.schemas.fastdecode.templates import TemplateDecoder
from maskline.schemas.privacy import redact
from maskline.worker.entries.dead_letter import INTERNAL_ERROR, DeadLetter, internal_error_reason
from maskline.worker.entries.entry import Entry
from maskline.worker.entries.failure_group import group_key
from maskline.worker.error_text import NO_ORIGIN, origin_of, short_traceback
from maskline.worker.ordering.reorder import Arrival

try:
    from maskline.worker.native import entries

    IN_C = True
except ImportError:  # there was no compiler at installation
    IN_C = False

RECORDING_PREFIX: Final = "SessionRecording"

_RECORDING: Final = frozenset(kind for name, kind in EVENT_TYPES.items() if name.startswith(RECORDING_PREFIX))

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

StreamEntries = Sequence[tuple[bytes, Sequence[bytes]]]
"""Entries as XREAD returns them: the ID, and names and values in turn."""

RefusedEntry = tuple[str, Sequence[bytes], UndecodableEntryError]
"""An entry that is no callback: its ID, its fields, and why it is refused."""

DecodeResult = tuple[list[str], list[Arrival], list[str], list[RefusedEntry]]
"""The IDs of all entries, the arrivals, the SessionUUIDs that are not known, and the refused entries."""

ArrivalOf = Callable[[str, Sequence[bytes], bool], Arrival]

DecodeEntries = Callable[[StreamEntries, bool, Mapping[str, Any]], DecodeResult]

DECODERS_MAX: Final = 8
"""Decoders kept: a process needs one, tests a few."""


class EntryDecoder:
    """Decodes stream entries. `ignored`: names of parameters that do not count in `Arrival.fingerprint`. `group`: the
    consumer group, whose own summaries of calls are told from others'; None takes all for its own.
    """

    def __init__(self, ignored: frozenset[str], group: str | None = None) -> None:
        self.callbacks = TemplateDecoder(ignored, group)
        self.unreadable = self.callbacks.unreadable
        """Values that could not be read since the partition took the last ones away: attribute, how often."""
        self.decode: DecodeEntries = self.decode_in_python
        """As `decode_in_python`: in C, unless there was no compiler at installation."""
        if IN_C and self.callbacks.templates is not None:
            self.decode = entries.EntryReader(
                self.callbacks.templates,
                self.arrival_of,
                _timestamps_us,
                _RECORDING,
                _is_recording,
                internal_refusal,
            ).decode_entries

    def decode_in_python(
        self, entries: StreamEntries, recording_shared: bool, known: Mapping[str, Any]
    ) -> DecodeResult:
        """Decode stream entries. `known`: SessionUUIDs that are not to be returned as unknown, with any values."""
        ids = [entry_id.decode() for entry_id, _ in entries]
        arrivals: list[Arrival] = []
        unknown: dict[str, None] = {}
        refused: list[RefusedEntry] = []
        for entry_id, (_, fields) in zip(ids, entries, strict=True):
            try:
                arrival = self.arrival_of(entry_id, fields, recording_shared)
                uuid = arrival.payload.event.session_uuid
                if uuid not in known:
                    unknown[uuid] = None
            except UndecodableEntryError as error:
                refused.append((entry_id, fields, error))
            except Exception as error:  # noqa: BLE001 - one entry is not to lose the others
                refused.append((entry_id, fields, internal_refusal(error)))
            else:
                arrivals.append(arrival)
        return ids, arrivals, list(unknown), refused

    def arrival_of(self, entry_id: str, fields: Sequence[bytes], recording_shared: bool) -> Arrival:
        """The arrival of an entry, with an `Entry` as its payload.

        `fields`: name and value of its one field, which is the msgpack of a RawCallback. `recording_shared`: recording
        events are numbered with the others. Raises UndecodableEntryError where the entry is no callback.
        """
        if len(fields) != 2 or fields[0] != CALLBACK_FIELD:
            raise UndecodableEntryError("foreign_entry", "the entry's fields are not those of a callback")
        event, fingerprint, received_at_ms, replayed = self.callbacks.decode(fields[1])
        arrived_ms = int(entry_id.partition("-")[0])
        if isinstance(event, CallSummary):
            entry = Entry(entry_id, fields[1], received_at_ms, replayed, event)
            return Arrival(None, fingerprint, None, False, False, False, arrived_ms, entry)
        moment, kind = event.event_timestamp, event.__class__
        recording = not recording_shared and (
            kind in _RECORDING or (kind is UnknownEvent and _is_recording(event))
        )
        return Arrival(  # by place: by name it takes twice as long
            event.sequence_number,
            fingerprint,
            None if moment is None else _timestamps_us[moment],
            recording,
            kind is SessionTimeout,
            kind in (MAY_OPEN_RECORDING if recording else MAY_OPEN_CALL),
            arrived_ms,
            Entry(entry_id, fields[1], received_at_ms, replayed, event),
        )


@lru_cache(DECODERS_MAX)
def entry_decoder(ignored: frozenset[str] = NONE_IGNORED, group: str | None = None) -> EntryDecoder:
    """The decoder that all partitions share: the templates that it learns serve them all."""
    return EntryDecoder(ignored, group)


def internal_refusal(error: Exception) -> UndecodableEntryError:
    """The refusal of an entry on which decoding itself has failed; `error` is its cause."""
    refusal = UndecodableEntryError(INTERNAL_ERROR, internal_error_reason(error, "decoding"))
    refusal.__cause__ = error
    return refusal


def dead_letter_of_undecodable(
    entry_id: str, fields: Sequence[bytes], error: UndecodableEntryError, *, group: str, now_ms: int
) -> DeadLetter:
    """The dead letter of an entry that `arrival_of` refuses; `fields` is empty where the entry was deleted."""
    # A foreign entry may hold anything: what is not bytes is kept as text.
    given: Sequence[Any] = fields or ()
    kept = [field if isinstance(field, bytes) else repr(field).encode() for field in given]
    ours = len(kept) == 2 and kept[0] == CALLBACK_FIELD
    traceback, origin = None, NO_ORIGIN
    if error.code == INTERNAL_ERROR and error.__cause__ is not None:
        traceback = short_traceback(error.__cause__, maskline_lines=True)
        origin = origin_of(error.__cause__, maskline_lines=True)
    reason = error.detail if traceback else f"{error.code.replace('_', ' ')}: {error.detail}"
    return DeadLetter(
        group=group,
        entry_id=entry_id,
        code=error.code,
        reason=redact(reason),
        failed_at_ms=now_ms,
        callback=kept[1] if ours else b"",
        received_at_ms=_received_at_ms(kept[1]) if ours else None,
        traceback=traceback,
        foreign_fields=[] if ours else list(zip(kept[::2], kept[1::2], strict=False)),
        error_type=origin.error_type,
        frame=origin.frame,
        group_key=group_key(
            None, error.code, origin.error_type, origin.frame, origin.message or redact(error.detail)
        ),
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


_timestamps_us: Final = BoundedCache(_timestamp_us, CACHED_VALUES_MAX)
"""The cache has the size of the one for the moments themselves."""


def _received_at_ms(value: Any) -> int | None:
    try:
        return decode_callback(value).received_at_ms
    except Exception:  # noqa: BLE001 - decoding may be what has failed
        return None
