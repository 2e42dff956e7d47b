"""Decides what became of a callback, from what Redis says. Pure.

| outcome | when |
| --- | --- |
| `refused` | the node did not answer 200 |
| `not_seen` | it is not in the stream: the node may have spooled it, or it is another installation's |
| `no_worker` | no worker of the group is alive |
| `held` | it waits for numbers before it |
| `under_way` | no worker is done with it. A handler that failed is tried again there for two seconds |
| `duplicate` | the same callback had come before: nobody gets it again |
| `no_handler` | no handler of the group takes the event |
| `dead_letter` | a handler has given it up, or it was given up before any handler |
| `failed` | a handler has failed on it, and is tried again later |
| `waiting` | a handler may not run it now: paused, down, limited, or behind an event that failed |
| `handled` | every handler that takes the event has handled it |
"""

from typing import Final, Literal, NamedTuple

import msgspec

from maskline.console.trigger.facts import Facts, Queued
from maskline.console.trigger.snapshot import Place

Outcome = Literal[
    "refused", "not_seen", "no_worker", "held", "under_way", "duplicate", "no_handler", "dead_letter",
    "failed", "waiting", "handled", "answered",
]  # fmt: skip
"""As in the table; `answered` if it was not followed."""

_FINAL: Final[frozenset[Outcome]] = frozenset({"duplicate", "no_handler", "dead_letter", "failed", "handled"})


class HandlerOutcome(msgspec.Struct, frozen=True):
    """What became of it for one handler; part of `maskline trigger --json`."""

    name: str
    outcome: Literal["handled", "failed", "waiting", "dead_letter"]
    attempts: int = 0
    """Failed attempts that count."""
    next_try_s: float | None = None
    """In how many seconds it is tried again; None if it is not known, or not going to be."""
    why: str | None = None
    dead_letter: str | None = None
    """As `maskline dead show` takes it."""
    soon: bool = False
    """It is waiting, and not for a person or for the end of an outage."""


class Judgement(NamedTuple):
    """What became of it."""

    outcome: Outcome
    handlers: tuple[HandlerOutcome, ...] = ()
    """In calling order; empty until a worker is done with it."""

    @property
    def final(self) -> bool:
        """Whether there is nothing to wait for, or not for seconds."""
        if self.outcome == "waiting":
            return not any(one.soon for one in self.handlers)
        return self.outcome in _FINAL


def judge(facts: Facts, place: Place) -> Judgement:
    """What became of the callback, whose place in the order was found to be `place`."""
    if facts.pending or not facts.read:
        held = place.held_until_ms is not None and facts.now_ms < place.held_until_ms
        return Judgement("no_worker" if not facts.workers else "held" if held else "under_way")
    if place.duplicate:
        return Judgement("duplicate")
    unreached = [(letter_id, letter) for letter_id, letter in facts.letters if letter.handler is None]
    if unreached:
        letter_id, letter = unreached[0]
        return Judgement(
            "dead_letter",
            (HandlerOutcome("no handler", "dead_letter", 0, None, letter.reason, letter_id),),
        )
    handlers = _of_handlers(facts)
    outcomes = {one.outcome for one in handlers}
    for outcome in ("dead_letter", "failed", "waiting"):
        if outcome in outcomes:
            return Judgement(outcome, handlers)
    return Judgement("no_handler" if facts.takers == () else "handled", handlers)


def _of_handlers(facts: Facts) -> tuple[HandlerOutcome, ...]:
    letters = {letter.handler: (letter_id, letter) for letter_id, letter in facts.letters}
    outcomes = []
    for name in dict.fromkeys((*(facts.takers or ()), *(name for name in letters if name is not None))):
        if name in letters:
            letter_id, letter = letters[name]
            one = HandlerOutcome(name, "dead_letter", letter.attempts, None, letter.reason, letter_id)
        elif name in facts.queued:
            one = _queued(name, facts.queued[name], facts)
        else:
            one = HandlerOutcome(name, "handled")
        outcomes.append(one)
    return tuple(outcomes)


def _queued(name: str, queued: Queued, facts: Facts) -> HandlerOutcome:
    next_try_s = None if queued.due_ms is None else max(queued.due_ms - facts.now_ms, 0) / 1000
    attempts, held = queued.item.attempts, facts.held.get(name)
    if attempts and held is None:
        return HandlerOutcome(name, "failed", attempts, next_try_s, queued.item.why)
    if queued.parked:
        return HandlerOutcome(name, "waiting", attempts, None, "behind a dead letter of its session")
    why = f"the handler is {held}" if held else "behind an earlier event of its session, or a limit"
    return HandlerOutcome(name, "waiting", attempts, next_try_s, why, soon=held is None)
