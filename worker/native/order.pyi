from collections.abc import Collection, Mapping

from maskline.worker.ordering.reorder import Arrival, Policy, Release, SessionOrder
from maskline.worker.ordering.state import SessionState
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession

def arrive_ordinary(
    arrivals: list[Arrival],
    at: int,
    sessions: dict[str, LiveSession],
    states: Mapping[str, bytes | None],
    policy: Policy,
    ready: list[LiveSession],
    owner: Partition,
) -> int: ...
def ordinary_outcomes(session: SessionOrder, arrival: Arrival, policy: Policy) -> list[Release] | None: ...
def evict_idle(
    sessions: dict[str, LiveSession],
    surplus: int,
    changed: Mapping[str, SessionState],
    being_written: Collection[str],
) -> int: ...
