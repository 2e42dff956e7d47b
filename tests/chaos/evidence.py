"""What the checks of a chaos run look at: the calls of a history in order, and what they find. Pure."""

from collections import Counter, defaultdict
from typing import NamedTuple

from disturbances import Call, Disturbances
from history import Answer, Began, DeadLetter, Ended, Exit, Fault, History, Rerun, Terms, Waiting


class Finding(NamedTuple):
    """A promise that was broken, and where."""

    promise: str
    detail: str


class Evidence:
    """A history by tag and by session, and the findings so far. Raises LookupError for one without terms."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.terms: Terms = history.terms
        self.disturbances = Disturbances(history.of(Fault), self.terms.lease_s)
        self.found: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.answered: dict[str, Answer] = {}
        for asked in history.of(Answer):
            if asked.status == 200 and asked.tag not in self.answered:
                self.answered[asked.tag] = asked
        self.calls = self._calls()
        self.by_tag: defaultdict[str, list[Call]] = defaultdict(list)
        self.by_handler: defaultdict[tuple[str, str], list[Call]] = defaultdict(list)
        """By session and handler: each handler has an order of its own."""
        for call in self.calls:
            self.by_tag[call.began.tag].append(call)
            self.by_handler[call.began.session, call.began.handler].append(call)

        self.uncalled: defaultdict[tuple[str, bool], set[int]] = defaultdict(set)
        """By session, and whether it is a recording: what events name as missing that wait or are dead letters."""
        for it in (*history.of(Waiting), *history.of(DeadLetter)):
            if (answer := self.answered.get(it.tag)) is not None:
                lane = answer.session, answer.event.startswith("SessionRecording")
                self.uncalled[lane].update(it.missing)

        self._reruns: defaultdict[str, float] = defaultdict(lambda: float("inf"))
        for it in history.of(Rerun):
            self._reruns[it.session] = min(it.at, self._reruns[it.session])

    def find(self, promise: str, detail: object) -> None:
        self.found.append(Finding(promise, str(detail)))

    def wanted(self, event: str) -> list[str]:
        """The handlers that subscribe to an event."""
        return [name for name, it in self.terms.handlers.items() if not it.events or event in it.events]

    def gave_up(self, call: Call) -> bool:
        """Whether a call was the handler's last try at the event, in vain."""
        attempts = self.terms.handlers[call.began.handler].attempts
        return call.outcome == "rejected" or (
            call.outcome == "failed" and attempts is not None and call.began.attempt >= attempts
        )

    def rerun(self, call: Call) -> bool:
        """Whether an operator had asked to run events of the session again, and this may be one of them."""
        return call.began.replayed and self._reruns[call.began.session] < call.began.at

    def _calls(self) -> list[Call]:
        ends = {ended.call: ended for ended in self.history.of(Ended)}
        killed = {it.pid: it.at for it in self.history.of(Exit)}
        calls = [Call(it, ends.get(it.call), killed.get(it.pid)) for it in self.history.of(Began)]
        return sorted(calls, key=lambda call: call.began.at)
