"""What operators do in a chaos run, and when: a pure function of the seed.

They pause handlers and resume them, replay and discard dead letters, and run a session again, all while workers are
killed. Before the fault is mended, what they replay fails again; after that it succeeds.
"""

import random
from typing import Literal, NamedTuple

Deed = Literal["pause", "resume", "replay", "discard", "rerun", "mend"]

PAUSED_S = 20.0
"""How long a handler is paused at most; a twentieth of a shorter run."""
PAUSED_MIN_S = 2.0
"""So that the command to pause has ended before the one to resume begins."""


class Operation(NamedTuple):
    """One deed of an operator."""

    at_s: float
    deed: Deed
    what: str = ""
    """The handler; empty for all."""


def operations(seed: int, duration_s: float) -> list[Operation]:
    """The deeds of a run, by their times."""
    rng = random.Random(f"{seed}:operators")

    def at(low: float, high: float) -> float:
        return rng.uniform(low, high) * duration_s

    paused_s = min(PAUSED_S, max(PAUSED_MIN_S, duration_s / 20))
    held = rng.sample(["ends", "remote"], 2)
    pauses = [at(0.05, 0.1), at(0.6, 0.7)]
    deeds = [
        *(Operation(begin, "pause", handler) for begin, handler in zip(pauses, held, strict=True)),
        *(
            Operation(begin + paused_s, "resume", handler)
            for begin, handler in zip(pauses, held, strict=True)
        ),
        Operation(at(0.2, 0.3), "replay", "every"),
        Operation(at(0.35, 0.45), "discard", rng.choice(["every", "ends"])),
        Operation(at(0.5, 0.55), "mend"),
        Operation(at(0.56, 0.65), "replay"),
        Operation(at(0.6, 0.8), "rerun"),
        Operation(at(0.8, 0.9), "replay", rng.choice(["every", "ends"])),
    ]
    return sorted(deeds)
