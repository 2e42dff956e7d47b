from collections.abc import Callable, Mapping

from worker.reorder import Arrival, Policy, Release, Session
from worker.session import LiveSession

def arrive_plainly(
    arrivals: list[Arrival],
    at: int,
    sessions: dict[str, LiveSession],
    states: Mapping[str, bytes | None],
    policy: Policy,
    ready: list[LiveSession],
    admit: Callable[[str, bytes | None], LiveSession],
    hold: Callable[[LiveSession, int], None],
) -> tuple[int, int]: ...
def plain_outcomes(session: Session, arrival: Arrival, policy: Policy) -> list[Release] | None: ...
