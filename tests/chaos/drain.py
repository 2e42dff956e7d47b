"""The end of a chaos run: waits until all that was answered is accounted for."""

import asyncio
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from chaos_handlers import HANDLERS
from history import Began, DeadLetter, Ended, Fact, Recovery, Tail, Waiting
from stage import Stage, tag_of
from traffic import Traffic

from maskline.worker.entries.dead_letter import decode_dead_letter

DRAIN_MAX_S = 90.0
"""After the last fault and the last answer. Whatever is not handled then counts as lost."""


class Drain:
    """`tail`: what the handlers write down; nobody else reads it. `discarded`: tag and handler of what operators have
    discarded. `stop` ends every wait."""

    def __init__(
        self,
        stage: Stage,
        traffic: Traffic,
        tail: Tail,
        discarded: AbstractSet[tuple[str, str]],
        note: Callable[[Fact], None],
        stop: asyncio.Event,
    ) -> None:
        self._stage = stage
        self._traffic = traffic
        self._tail = tail
        self._discarded = discarded
        self._note = note
        self._stop = stop
        self._calls: dict[str, tuple[str, str]] = {}
        self._done: set[tuple[str, str]] = set()

    async def until_accounted(self, name: str, *, all_done: bool = False) -> None:
        """Wait until the streams are done and each handler has handled what was answered, or given it up, or has it
        behind a dead letter (`all_done`: not these); or until the patience is over. Writes down how long it took.

        The streams alone do not say it: an ingest node may still have something in its spool.
        """
        began = time.monotonic()
        wanted = {
            (tag, handler)
            for tag, event in self._traffic.answered.items()
            for handler, terms in HANDLERS.items()
            if not terms.events or event in terms.events
        }
        while not self._stop.is_set() and time.monotonic() < began + DRAIN_MAX_S:
            self._read()
            left = await asyncio.to_thread(self._stage.left)
            if not any(pending != 0 or lag != 0 for pending, lag in left.values()):
                letters = await asyncio.to_thread(dead_letters, self._stage)
                behind = await asyncio.to_thread(waiting, self._stage)
                wanted -= self._done | self._discarded
                for letter in letters:
                    wanted -= {
                        (letter.tag, handler) for handler in HANDLERS if letter.handler in (None, handler)
                    }
                wanted -= {(it.tag, it.handler) for it in behind if it.parked}
                kept = behind or any(letter.handler for letter in letters)
                if not (wanted or (kept if all_done else any(not it.parked for it in behind))):
                    self._note(Recovery(name, "all", began, time.monotonic() - began))
                    return
            await asyncio.sleep(0.1)

    def _read(self) -> None:
        for fact in self._tail.read():
            if isinstance(fact, Began):
                self._calls[fact.call] = fact.tag, fact.handler
            elif isinstance(fact, Ended) and fact.call in self._calls:
                key = self._calls.pop(fact.call)
                if fact.outcome == "done":
                    self._done.add(key)


def dead_letters(stage: Stage) -> list[DeadLetter]:
    """The dead letters that there are. Blocks."""
    letters: list[DeadLetter] = []
    for number in range(stage.partitions):
        for _, fields in stage.client.xrange(stage.keys.dead(number)):
            letter = decode_dead_letter(fields[b"d"])
            letters.append(
                DeadLetter(tag_of(letter.callback), letter.handler, letter.code, list(letter.missing or ()))
            )
    return letters


def waiting(stage: Stage) -> list[Waiting]:
    """The events that were set aside. Blocks."""
    return [
        Waiting(tag_of(item.callback), handler, parked, list(item.missing))
        for handler, parked, items in stage.retry_queues(HANDLERS)
        for item in items
    ]
