"""Builds histories by hand, for the tests of the checker."""

from collections.abc import Sequence

from checker import Verdict, check
from history import (
    Answer,
    Began,
    DeadLetter,
    Discarded,
    Ended,
    Exit,
    Fact,
    Fault,
    HandlerTerms,
    History,
    Leftover,
    Operated,
    Rerun,
    Said,
    Terms,
    Waiting,
)

LEASE_S = 1.0
GAP_TIMEOUT_S = 1.0
PARTITIONS = 1
"""One, so that sessions and owners need no arithmetic."""
ATTEMPTS = 3
ENDING = "SessionTimeout"
CALLED = "SessionPartiesHangup"
RINGING = "SessionFirstPartyRinging"
HANDLERS = {
    "every": HandlerTerms(attempts=ATTEMPTS),
    "ends": HandlerTerms([ENDING], attempts=ATTEMPTS),
    "skips": HandlerTerms([CALLED], attempts=ATTEMPTS, skips=True),
    "remote": HandlerTerms([CALLED], held=True),
}
"""The last two ask for an event that few tests send."""


class HistoryBuilder:
    """Builds a history. Defaults are the ordinary case: answered 200, done at the first attempt, nothing left."""

    def __init__(self) -> None:
        self.facts: list[Fact] = [Terms(HANDLERS, LEASE_S, PARTITIONS, gap_timeout_s=GAP_TIMEOUT_S)]
        self.left = [Leftover(number, 0, 0) for number in range(PARTITIONS)]
        self.asked: dict[str, Answer] = {}
        self._calls = 0

    def sent(
        self,
        tag: str,
        number: int | None = None,
        *,
        session: str = "s",
        event: str = RINGING,
        at: float = 0.0,
        status: int = 200,
        node: str = "ingest-0",
    ) -> None:
        asked = Answer(tag, session, number, event, node, at, at + 0.01, status)
        self.asked.setdefault(tag, asked)
        self.facts.append(asked)

    def call(
        self,
        tag: str,
        at: float,
        *,
        took: float | None = 0.01,
        handler: str = "every",
        token: int = 1,
        pid: int = 100,
        outcome: str = "done",
        order: str = "",
        missing: Sequence[int] = (),
        attempt: int = 1,
        key: str = "",
        run: int = 0,
        skipped: Sequence[int] = (),
        replayed: bool = False,
    ) -> None:
        """`took`: None for a call that has no end."""
        asked = self.asked.get(tag) or Answer(tag, "s", None, RINGING, "", 0.0, 0.0, 0)
        order = order or ("unsequenced" if asked.number is None else "in_order")
        name = f"{pid}-{self._calls}"
        self._calls += 1
        self.facts.append(
            Began(
                name,
                pid,
                handler,
                tag,
                asked.session,
                asked.number,
                asked.event,
                order,
                list(missing),
                run,
                attempt,
                key or f"key of {tag}",
                token,
                at,
                list(skipped),
                replayed,
            )
        )
        if took is not None:
            self.facts.append(Ended(name, outcome, at + took))

    def fault(self, kind: str, target: str, began: float, ended: float, *, pid: int = 0) -> None:
        self.facts.append(Fault(kind, target, pid, began, ended))

    def killed(self, pid: int, at: float, *, target: str = "worker-0") -> None:
        self.fault("kill", target, at, at + 0.5, pid=pid)
        self.exited(pid, at, code=-9, asked="kill", target=target)

    def exited(self, pid: int, at: float, *, code: int, asked: str, target: str = "worker-0") -> None:
        self.facts.append(Exit(target, pid, code, asked, at))

    def letter(self, tag: str, handler: str | None) -> None:
        self.facts.append(DeadLetter(tag, handler, "retries_exhausted"))

    def waits(self, tag: str, handler: str, *, parked: bool = True, missing: Sequence[int] = ()) -> None:
        self.facts.append(Waiting(tag, handler, parked, [*missing]))

    def discarded(self, tag: str, handler: str, at: float) -> None:
        self.facts.append(Discarded(tag, handler, at))

    def said(self, node: str, at: float, *, held: bool = True) -> None:
        self.facts.append(Said(node, 0, at, held))

    def rerun(self, session: str, at: float) -> None:
        self.facts.append(Rerun(session, at))

    def operated(self, command: str, *, code: int = 0, said: str = "") -> None:
        self.facts.append(Operated(command, 1.0, 2.0, code, said))

    def numbers(
        self, *numbers: int, session: str = "s", token: int = 1, pid: int = 100, at: float = 1.0
    ) -> None:
        """Send and handle numbers, each under its own tag `<session><number>`, a tenth of a second apart."""
        for place, number in enumerate(numbers):
            self.sent(f"{session}{number}", number, session=session)
            self.call(f"{session}{number}", at + place / 10, token=token, pid=pid)

    def verdict(self) -> Verdict:
        return check(History([*self.facts, *self.left]))

    @property
    def broken(self) -> dict[str, int]:
        """How often each promise was broken, of those that were."""
        return {promise: len(findings) for promise, findings in self.verdict().broken.items()}
