"""Reads items of retry queues back: as the releases that they stand for, or as dead letters. Pure."""

from msgspec.structs import replace

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.worker.entries.dead_letter import Cause, DeadLetter, dead_letter_of
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.entries.queue_item import ITEM_VERSION, QueueItem, decode_item
from maskline.worker.ordering.reorder import Arrival, Release
from maskline.worker.ordering.state import NEW_SESSION
from maskline.worker.partitions.session import SetAside


class QueueItemReader:
    """`group`: the consumer group. `recording_shared`: recording events are numbered with the others."""

    def __init__(self, decoder: EntryDecoder, group: str, *, recording_shared: bool) -> None:
        self._decoder = decoder
        self._group = group
        self._recording_shared = recording_shared

    def read(self, encoded: bytes) -> tuple[QueueItem, Release]:
        """An item as Redis has it, and its release. Raises what is wrong with it: ValueError, UndecodableEntryError."""
        item = decode_item(encoded)
        arrival = self._arrival_of(item)
        if item.replayed:
            arrival = replace(arrival, payload=replace(arrival.payload, replayed=True))
        return item, Release(arrival, item.order, item.missing, item.run, NEW_SESSION)

    def letter_of(
        self, uuid: str, handler: str, encoded: bytes, cause: Cause, now_ms: int
    ) -> tuple[DeadLetter, int | None, str | None]:
        """The dead letter of an item that is not run, its event's SequenceNumber, and the job that replays it.

        `uuid`, `handler`: of its queue. An item that cannot be read makes a letter with whatever is known.
        """
        letter = DeadLetter(
            self._group, "", cause.code, cause.reason, now_ms, encoded, session_uuid=uuid, handler=handler
        )
        try:
            item = decode_item(encoded)
        except ValueError:
            return letter, None, None
        try:
            arrival = self._arrival_of(item)
        except Exception:  # noqa: BLE001 - whatever it is, the letter has the callback
            unread = replace(letter, entry_id=item.entry_id, callback=item.callback, attempts=item.attempts)
            return unread, None, item.job
        release = Release(arrival, item.order, item.missing, item.run, NEW_SESSION)
        named = cause._replace(handler=handler, attempts=item.attempts)
        letter = dead_letter_of(arrival, named, group=self._group, failed_at_ms=now_ms, release=release)
        return letter, arrival.number, item.job

    def _arrival_of(self, item: QueueItem) -> Arrival:
        return self._decoder.arrival_of(
            item.entry_id, (CALLBACK_FIELD, item.callback), self._recording_shared
        )


def item_of(release: Release, aside_ms: int, outcome: SetAside) -> QueueItem:
    """The item of an event that is set aside at `aside_ms`, by the worker's clock."""
    entry = release.arrival.payload
    return QueueItem(
        ITEM_VERSION,
        entry.entry_id,
        entry.encoded,
        release.order,
        release.missing,
        release.run,
        aside_ms,
        outcome.attempts,
        outcome.first_failed_ms,
        entry.replayed,
        why=outcome.why,
    )
