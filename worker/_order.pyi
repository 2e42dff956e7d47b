from collections.abc import Mapping

from worker.partition import Partition
from worker.reorder import Arrival, Policy, Release, Session
from worker.session import LiveSession

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
