"""Follows a callback that was sent, from the stream to its handlers."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple

from maskline.console.jobs.records import checked
from maskline.console.redis_reader import RedisReader, query_for
from maskline.console.trigger.facts import Facts, read_facts
from maskline.console.trigger.outcome import Judgement, judge
from maskline.console.trigger.snapshot import Place, SessionSnapshot, place_of, read_arrival
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, decode_callback
from maskline.schemas.errors import UndecodableEntryError

LOOK_INTERVAL_S: Final = 0.05
PAGE_ENTRIES: Final = 500
PROGRESS_AFTER_S: Final = 1.0
"""From then on a line says what is waited for, whenever that changes."""


class Followed(NamedTuple):
    """How far a callback has come."""

    judgement: Judgement
    entry_id: str | None = None
    """None if it was not seen in the stream."""
    place: Place = Place()
    facts: Facts | None = None


class Follower:
    """Follows one callback. `is_it`: whether a raw callback of the stream is the one. `on_wait`: called with how far it
    has come when that has changed, after the first PROGRESS_AFTER_S.
    """

    def __init__(
        self,
        reader: RedisReader,
        snapshot: SessionSnapshot,
        is_it: Callable[[RawCallback], bool],
        on_wait: Callable[[Followed], None],
    ) -> None:
        self._reader = reader
        self._snapshot = snapshot
        self._is_it = is_it
        self._on_wait = on_wait
        self._seen_to = snapshot.stream_end

    async def follow(self, timeout_s: float) -> Followed:
        """Follow it until there is nothing to wait for, `timeout_s` at most. Raises RedisUnavailableError, JobError."""
        began, told = monotonic(), ""
        entry: Any = None
        while True:
            if entry is None:
                entry = await self._find()
            followed = Followed(Judgement("not_seen")) if entry is None else await self._look(entry)
            outcome, elapsed_s = followed.judgement.outcome, monotonic() - began
            if followed.judgement.final or elapsed_s >= timeout_s:
                return followed
            if elapsed_s >= PROGRESS_AFTER_S and outcome != told:
                self._on_wait(followed)
                told = outcome
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _find(self) -> Any:
        """The callback's entry; None if it is not there yet."""
        stream = self._reader.keys.callbacks(self._snapshot.partition)
        while True:
            query = query_for(stream, "XRANGE", stream, f"({self._seen_to}", "+", "COUNT", PAGE_ENTRIES)
            (entries,) = checked(await self._reader.send([query]))
            for entry_id, fields in entries:
                self._seen_to = entry_id.decode()
                if self._is_callback(fields):
                    return entry_id, fields
            if len(entries) < PAGE_ENTRIES:
                return None

    def _is_callback(self, fields: list[bytes]) -> bool:
        if len(fields) != 2 or fields[0] != CALLBACK_FIELD:
            return False
        try:
            return self._is_it(decode_callback(fields[1]))
        except UndecodableEntryError:
            return False

    async def _look(self, entry: Any) -> Followed:
        entry_id = entry[0].decode()
        arrival = read_arrival(entry, self._reader.settings)
        kind = "" if arrival is None else type(arrival.payload.event).__name__
        facts = await read_facts(self._reader, self._snapshot, entry_id, kind)
        # Without an arrival it cannot be decoded: then it is a dead letter, in no order.
        place = (
            Place("unsequenced")
            if arrival is None
            else place_of(self._snapshot, arrival, self._reader.settings)
        )
        return Followed(judge(facts, place), entry_id, place, facts)
