"""The calls of a history, and when their owners were disturbed: what the checker may excuse. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from history import Began, Ended, Fault


class Call:
    """One call of a handler."""

    __slots__ = ("began", "end", "outcome")

    def __init__(self, began: Began, ended: Ended | None, killed_at: float | None) -> None:
        self.began = began
        self.outcome = ended.outcome if ended else "cut"
        self.end = ended.at if ended else killed_at
        """When it ended, or its process did; None where neither is known."""

    def __str__(self) -> str:
        it = self.began
        return (
            f"{it.session} {it.event} {it.number} {it.order} by {it.handler}, attempt {it.attempt}, "
            f"token {it.token}, pid {it.pid}, {it.at:.3f} to {self.end or it.at:.3f}: {self.outcome}"
        )


class Disturbances:
    """When owners could not know, or record, what they had done."""

    def __init__(self, faults: Iterable[Fault], lease_s: float) -> None:
        self.lease_s = lease_s
        self.faults = list(faults)
        self.redis: list[Fault] = []
        self.of: defaultdict[int, list[Fault]] = defaultdict(list)
        self.asked_to_stop: dict[int, float] = {}
        """When a process was asked to stop: no excuse, but it starts no handler any more."""
        for fault in self.faults:
            if fault.target == "redis":
                self.redis.append(fault)
            elif fault.kind == "restart":
                self.asked_to_stop[fault.pid] = fault.began
            elif fault.kind != "log":  # that nobody reads what it logs is no excuse
                self.of[fault.pid].append(fault)

    def overlap(self, pid: int, since: float, until: float) -> bool:
        """Whether the process was disturbed at any time between `since` and `until`."""
        return any(
            fault.began <= until and since <= fault.ended + self.lease_s
            for faults in (self.of.get(pid, ()), self.redis)
            for fault in faults
        )

    def stops(self, pid: int) -> Iterator[Fault]:
        return (fault for fault in self.of.get(pid, ()) if fault.kind == "stop")
