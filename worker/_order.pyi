from collections.abc import Collection, Mapping

from maskline.worker.partition import Partition
from maskline.worker.reorder import Arrival, Policy, Release, Session
from maskline.worker.session import LiveSession
from maskline.worker.state import SessionState

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
