"""What one handler may be called with in one session: a model of retry queues, dead letters and what operators do.

Pure, and without time: it does not know when something is tried again, only that nothing overtakes, nothing is left
out, nothing comes twice and every try is counted. Nothing of maskline is used.

Strategy: a set of states in which the handler may be. What is seen drops those that do not fit; when none is left, the
call should not have been. A crash adds all states since the last moment at which everything was committed.
"""

from collections.abc import Iterator
from typing import NamedTuple

RETRIES = 1
"""Of the handlers that count: so many tries after the first."""


class State(NamedTuple):
    """How far a handler is in a session."""

    at: int = 0
    """The place of the event that it handles next, or is at, among those of the session."""
    attempts: int = 0
    """Failed tries of that event that count."""
    parked: bool = False
    """That event is a dead letter, and the others wait behind it."""
    replaying: bool = False
    """That event was a dead letter, which an operator replays."""
    skipped: frozenset[int] = frozenset()
    """Numbers given up or discarded, and not handled since."""


class MisorderedError(AssertionError):
    """A handler was called for what it should not have been called for."""


class Lane:
    """One handler in one session. `skips`: it goes on after what it gave up. `counts`: it gives up after RETRIES."""

    def __init__(self, name: str, *, skips: bool, counts: bool) -> None:
        self.name = name
        self._skips = skips
        self._counts = counts
        self.numbers: list[int] = []
        """Of the session, in the order of handling."""
        self.may_replay: set[int] = set()
        """Numbers whose dead letter an operator has asked to replay."""
        self.may_discard: set[int] = set()
        self.states = {State()}
        self._since_durable = {State()}
        self.running: int | None = None
        """The number of the call under way."""
        self._called: set[State] = set()
        """The states as the call under way found them."""
        self._extra = False
        """The call under way is a replay of what was skipped, beside the sequence."""
        self._done: set[int] = set()
        self.history: list[str] = []

    # What happens

    def began(self, number: int, attempt: int, *, replayed: bool, skipped: tuple[int, ...]) -> None:
        """The handler is called. Raises MisorderedError."""
        self.history.append(f"{number} attempt {attempt}{' replayed' * replayed} skipped {skipped}")
        if self.running is not None:
            self._fail(f"called for {number} while it runs {self.running}")
        fitting = {
            after
            for before in self._closure()
            for after in self._fits(before, number, attempt, replayed, frozenset(skipped))
        }
        self._extra = False
        if not fitting and replayed and number in self.may_replay:
            fitting, self._extra = {one for one in self._closure() if number in one.skipped}, True
        if not fitting:
            self._fail(f"called for {number} (attempt {attempt}) in {sorted(self.states)}")
        self.running, self._called = number, fitting
        self._move(fitting)

    def ended(self, outcome: str, *, attempt: int, held: bool) -> None:
        """The call has ended: `done`, `failed`, `rejected`, or `cut` by a crash or a stop.

        `held`: the handler was, or may have been, paused at that moment: then a failure need not count.
        """
        self.history.append(outcome)
        number, self.running = self.running, None
        assert number is not None
        if outcome == "cut":
            return
        if outcome == "done":
            self._done.add(number)
        gives_up = outcome == "rejected" or (outcome == "failed" and self._counts and attempt > RETRIES)
        after: set[State] = set()
        for state in self._called:
            if held and outcome == "failed":
                after.add(state)
            after.add(self._after(state, number, outcome, gives_up=gives_up))
        self._move(after)

    def crashed(self) -> None:
        """The worker is gone with what it had not committed."""
        self.history.append("crash")
        self.running = None
        self.states = set(self._since_durable)

    def durable(self) -> None:
        """Everything is committed: a crash takes nothing of it back."""
        self._since_durable = set(self.states)

    # What holds

    def check_finished(self) -> None:
        """Everything is over: each event was handled, or an operator may have discarded it. Raises MisorderedError."""
        left_out = set(self.numbers) - self._done - self.may_discard
        if left_out:
            self._fail(f"never called for {sorted(left_out)}")
        if not any(
            one.at == len(self.numbers) and not one.parked and one.skipped <= self.may_discard
            for one in self._closure()
        ):
            self._fail(f"not at the end of {self.numbers}: {sorted(self.states)}")

    # Inside

    def _move(self, states: set[State]) -> None:
        self.states = states
        self._since_durable |= states

    def _closure(self) -> Iterator[State]:
        """The states, and those to which an operator may have brought them."""
        for state in self.states:
            yield state
            head = self.numbers[state.at] if state.at < len(self.numbers) else None
            if state.parked and head in self.may_discard:
                yield State(state.at + 1, skipped=state.skipped | {head})

    def _fits(
        self, state: State, number: int, attempt: int, replayed: bool, skipped: frozenset[int]
    ) -> Iterator[State]:
        if state.at >= len(self.numbers) or self.numbers[state.at] != number:
            return
        if skipped != state.skipped:
            return
        if state.parked:
            if replayed and attempt == 1 and number in self.may_replay:
                yield state._replace(parked=False, attempts=0, replaying=True)
        elif replayed == state.replaying and attempt == state.attempts + 1:
            yield state

    def _after(self, state: State, number: int, outcome: str, *, gives_up: bool) -> State:
        if self._extra:
            return state._replace(skipped=state.skipped - {number}) if outcome == "done" else state
        if outcome == "done":
            return State(state.at + 1, skipped=state.skipped)
        if not gives_up:
            return state._replace(attempts=state.attempts + 1)
        if self._skips:
            return State(state.at + 1, skipped=state.skipped | {number})
        return State(state.at, parked=True, skipped=state.skipped)

    def _fail(self, what: str) -> None:
        raise MisorderedError(f"{self.name}: {what}; before: {'; '.join(self.history)}")
