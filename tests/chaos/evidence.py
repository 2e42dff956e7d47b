"""What the checks of a chaos run look at: the calls of a history in order, and what they find. Pure."""

from collections import Counter, defaultdict
from typing import NamedTuple

from disturbances import Call, Disturbances
from history import Answer, Began, Ended, Exit, Fault, History, Terms


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
        self.by_session: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            self.by_tag[call.began.tag].append(call)
            self.by_session[call.began.session].append(call)

    def find(self, promise: str, detail: object) -> None:
        self.found.append(Finding(promise, str(detail)))

    def wanted(self, event: str) -> list[str]:
        return [name for name, events in self.terms.handlers.items() if not events or event in events]

    def _calls(self) -> list[Call]:
        ends = {ended.call: ended for ended in self.history.of(Ended)}
        killed = {it.pid: it.at for it in self.history.of(Exit)}
        calls = [Call(it, ends.get(it.call), killed.get(it.pid)) for it in self.history.of(Began)]
        return sorted(calls, key=lambda call: call.began.at)
