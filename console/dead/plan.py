"""What a replay or discard of dead letters would do, found out by reading the letters that it selects."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from maskline.console.dead.letters import Letter, batches_of_all, letters_of_ids
from maskline.console.dead.rows import waiting_behind
from maskline.console.known_handlers import read_known_handlers
from maskline.console.output import counted, printable
from maskline.console.redis_reader import RedisReader, entry_order
from maskline.schemas.jobs import Selection

SESSIONS_HELD_MAX: Final = 200_000
"""Sessions kept to count each once, some 30 MB; from then on their number is a lower bound."""


class HandlerPlan(msgspec.Struct):
    """What is planned for one handler; part of `--json`."""

    handler: str | None
    """None: letters for which no handler was reached. A replay runs each handler of their event."""
    letters: int = 0
    waiting: int = 0
    """Events that wait behind these letters, and go on once they are dealt with."""
    known: bool | None = None
    """Whether the workers have it; None if none ever said which it has. If not, a replay leaves the letters alone."""


class LetterPlan(msgspec.Struct):
    """The letters that are selected; `--json` prints these fields, but `ends`."""

    letters: int = 0
    """Of this consumer group."""
    sessions: int = 0
    sessions_exact: bool = True
    """Whether `sessions` is their number; otherwise there are at least so many."""
    waiting: int = 0
    handlers: list[HandlerPlan] = []
    missing_ids: list[str] = []
    """IDs that were named and that no dead letter has."""
    of_other_groups: int = 0
    """Selected letters that only workers of other consumer groups can run."""


class DeadLetterPlan:
    """A `jobs.start.Plan` about dead letters. `replay`: whether they would be run, or discarded."""

    def __init__(self, group: str, *, replay: bool) -> None:
        self.ends: dict[int, str] = {}
        self._group = group
        self._replay = replay
        self._plan = LetterPlan()
        self._by_handler: dict[str | None, HandlerPlan] = {}
        self._sessions: set[str] = set()

    def add(self, letter: Letter, waiting: int) -> None:
        """Count a selected letter; `waiting`: the events behind it. Letters of a partition come in any order."""
        plan, head = self._plan, letter.head
        if head.group != self._group:
            plan.of_other_groups += 1
            return
        plan.letters += 1
        plan.waiting += waiting
        of_handler = self._by_handler.get(head.handler)
        if of_handler is None:
            of_handler = self._by_handler[head.handler] = HandlerPlan(head.handler)
        of_handler.letters += 1
        of_handler.waiting += waiting
        if head.session_uuid is not None and head.session_uuid not in self._sessions:
            if len(self._sessions) < SESSIONS_HELD_MAX:
                self._sessions.add(head.session_uuid)
            else:
                plan.sessions_exact = False
        end = self.ends.get(letter.partition)
        if end is None or entry_order(end) < entry_order(letter.entry_id):
            self.ends[letter.partition] = letter.entry_id

    def finish(self, known: set[str] | None, missing_ids: Sequence[str]) -> None:
        """Complete the plan. `known`: the handlers that the workers have; None if none ever said which it has."""
        plan = self._plan
        plan.sessions = len(self._sessions)
        plan.missing_ids = [*missing_ids]
        plan.handlers = sorted(self._by_handler.values(), key=lambda it: (-it.letters, it.handler or ""))
        for it in plan.handlers:
            it.known = None if known is None or it.handler is None else it.handler in known

    @property
    def runs(self) -> int:
        """The letters of this consumer group."""
        return self._plan.letters

    @property
    def problem(self) -> bool:
        """Whether letters that were named do not exist, or belong to another consumer group."""
        return bool(self._plan.missing_ids or self._plan.of_other_groups)

    def as_json(self) -> Any:
        """The plan for a program."""
        return self._plan

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        plan = self._plan
        for letter_id in plan.missing_ids:
            yield f"there is no dead letter {letter_id[:60]!r}"
        if plan.of_other_groups:
            yield (
                f"{plan.of_other_groups:,} of the dead letters selected belong to other consumer groups: "
                "set MASKLINE_GROUP for these"
            )
        if not plan.letters:
            yield "no dead letter is selected"
            return
        sessions = ("" if plan.sessions_exact else "at least ") + counted(plan.sessions, "session")
        verb = "run again" if self._replay else "discard"
        yield (
            f"{verb} {counted(plan.letters, 'dead letter')} of {sessions}, "
            f"with {counted(plan.waiting, 'event')} behind"
        )
        for it in plan.handlers:
            yield f"  {self._handler_line(it)}"

    def _handler_line(self, it: HandlerPlan) -> str:
        if it.handler is None:
            how = ": each handler of the event is called" if self._replay else ""
            return f"no handler was reached: {it.letters:,}{how}"
        line = f"{printable(it.handler)}: {it.letters:,}, then {it.waiting:,} that wait behind"
        if self._replay and it.known is False:
            return f"{line}; BUT NO WORKER HAS THIS HANDLER: they stay dead letters"
        return line


async def look_at_letters(reader: RedisReader, selection: Selection, *, replay: bool) -> DeadLetterPlan:
    """Read the selected letters, and what would become of them."""
    plan = DeadLetterPlan(reader.keys.group, replay=replay)
    found: set[str] = set()

    async def add(letters: Sequence[Letter]) -> None:
        wanted = [it for it in letters if selection.matches(it.head, it.id, it.group_key)]
        for letter, waiting in zip(wanted, await waiting_behind(reader, wanted), strict=True):
            plan.add(letter, waiting)

    if selection.ids:
        letters = [letter async for letter in letters_of_ids(reader, dict.fromkeys(selection.ids))]
        found = {letter.id for letter in letters}
        await add(letters)
    else:
        async for batch in batches_of_all(reader):
            await add(batch)
    missing = [text for text in dict.fromkeys(selection.ids) if text not in found]
    plan.finish(await read_known_handlers(reader), missing)
    return plan
