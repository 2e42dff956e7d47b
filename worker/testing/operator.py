"""What an operator does, on the worker of a harness: replays and discards, by the rules that jobs carry out."""

from typing import Final

from maskline.schemas.call_summary import Handled
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.jobs import Selection
from maskline.worker.api.binding import Table
from maskline.worker.commands.retry_ops import Requeue
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.entries.entry import entry_position
from maskline.worker.entries.queue_item import QueueItem, decode_item
from maskline.worker.jobs.letter_plan import plan_replay
from maskline.worker.jobs.letter_replay import discard, put_back
from maskline.worker.jobs.letter_scan import PARKED_WITHIN_MS
from maskline.worker.jobs.session_replay import replayed_item, runs_again, without
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.session import LiveSession
from maskline.worker.testing.kept import Kept, Place
from maskline.worker.testing.parts import Clock

WAITS: Final = "events of the session wait for a number: let the time of the gap pass first"


class Operator:
    """Changes a partition, whose next commit writes it. `letter_id`: as `Kept.letters` has it."""

    def __init__(
        self, partition: Partition, kept: Kept, clock: Clock, table: Table, settings: PartitionSettings
    ) -> None:
        self._partition = partition
        self._kept = kept
        self._clock = clock
        self._table = table
        self._settings = settings

    def replay(self, letter_id: str) -> None:
        """Run the event of a dead letter again, as `maskline dead replay` does. Raises ValueError if that cannot be."""
        letter = self._kept.letters[letter_id]
        plan = plan_replay(letter, self._arrival((letter.entry_id, letter.callback)), self._names_of)
        if plan.action == "gone":
            raise ValueError("no handler takes the event of this dead letter any more")
        if plan.action == "requeue":
            self._partition.add_retry_op(Requeue(letter_id, letter.callback))
            return
        session = self._changeable_session(plan.session_uuid)
        parks = self._parks(letter_id)
        put_back(self._partition, session, letter_id, letter, plan, parks=parks, now_ms=self._clock.now_ms)

    def discard(self, letter_id: str) -> None:
        """Give a dead letter up for good, as `maskline dead discard` does: what waits behind it goes on."""
        letter, parks = self._kept.letters[letter_id], self._parks(letter_id)
        session = self._changeable_session(letter.session_uuid) if parks and letter.session_uuid else None
        discard(self._partition, session, letter_id, letter, parks=parks)

    def run_again(self, selection: Selection) -> None:
        """Run the handled callbacks of a session again, as `maskline replay --session` does. Raises ValueError."""
        uuid = selection.session or ""
        session = self._changeable_session(uuid)
        if session.waiting:
            raise ValueError(WAITS)
        arrivals = [arrival for arrival in map(self._arrival, self._kept.stream) if arrival is not None]
        arrivals = [arrival for arrival in arrivals if arrival.payload.event.session_uuid == uuid]
        policy = self._settings.policy
        runs = runs_again(arrivals, selection, self._names_of, policy, session.state)
        items: dict[str, list[QueueItem]] = {}
        for release, handlers in without(runs, self._waiting_entries(uuid)):
            for handler in handlers:
                items.setdefault(handler, []).append(replayed_item(release, self._clock.now_ms, None))
        for handler, those in items.items():
            self._partition.append_replayed(session, handler, those)

    def _waiting_entries(self, uuid: str) -> set[tuple[str, str]]:
        """The handlers, each with an entry that waits in its queue of the session, or that the queue waits behind."""
        kept = self._kept
        waiting = {
            (place.handler, decode_item(item).entry_id)
            for _, place in (*kept.queues.due(), *kept.queues.parked_since())
            if place.session == uuid
            for item in kept.queues.items(place)
        }
        parking = [letter for letter_id, letter in kept.letters.items() if self._parks(letter_id)]
        return waiting | {(one.handler or "", one.entry_id) for one in parking if one.session_uuid == uuid}

    def _arrival(self, entry: tuple[str, bytes]) -> Arrival | None:
        """An entry, decoded as by the partition; None if it cannot be."""
        settings, decoder = self._settings, entry_decoder(self._settings.ignored_parameters)
        try:
            return decoder.arrival_of(entry[0], (CALLBACK_FIELD, entry[1]), settings.recording_shared)
        except (UndecodableEntryError, ValueError):
            return None

    def _names_of(self, kind: type[Handled]) -> list[str]:
        return [handler.name for handler in self._table[kind]]

    def _changeable_session(self, uuid: str) -> LiveSession:
        session = self._partition.session_of(uuid, self._kept.state(uuid, self._clock.now_ms))
        if not self._partition.may_change_queues(session):
            raise ValueError(WAITS)
        return session

    def _parks(self, letter_id: str) -> bool:
        """Whether its handler's queue waits behind this letter, and not behind a later one."""
        letter = self._kept.letters[letter_id]
        if not letter.parked or letter.handler is None or letter.session_uuid is None:
            return False
        parked_ms = self._kept.queues.parked_ms(Place(letter.handler, letter.session_uuid))
        return parked_ms is not None and parked_ms <= entry_position(letter_id)[0] + PARKED_WITHIN_MS
