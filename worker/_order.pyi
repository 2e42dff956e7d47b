from collections.abc import Collection, Mapping

from worker.partition import Partition
from worker.reorder import Arrival, Policy, Release, Session
from worker.session import LiveSession
from worker.state import SessionState

def arrive_plainly(
    arrivals: list[Arrival],
    at: int,
    sessions: dict[str, LiveSession],
    states: Mapping[str, bytes | None],
    policy: Policy,
    ready: list[LiveSession],
    owner: Partition,
) -> int: ...
def plain_outcomes(session: Session, arrival: Arrival, policy: Policy) -> list[Release] | None: ...
def evict_plainly(
    sessions: dict[str, LiveSession],
    surplus: int,
    changed: Mapping[str, SessionState],
    being_written: Collection[str],
) -> int: ...
