"""The phases of an owned partition, from the acquisition of its lease to its loss. Pure.

| phase | its handlers start | the stream is read on | results are committed |
| --- | --- | --- | --- |
| `OPENING`: the group's pending list is read | yes | no | yes |
| `OPEN` | yes | yes | yes |
| `PAUSED`: about to be given back, and opened again if a handler is still at work | no | no | yes |
| `LOST`: given back or taken away | no | no | no |
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Phase(Enum):
    """The phase of an owned partition."""

    OPENING = "opening"
    OPEN = "open"
    PAUSED = "paused"
    LOST = "lost"


TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.PAUSED, Phase.LOST}),
    Phase.OPEN: frozenset({Phase.PAUSED, Phase.LOST}),
    Phase.PAUSED: frozenset({Phase.OPEN, Phase.LOST}),
    Phase.LOST: frozenset(),  # the next owner gets its entries again: nothing may start or be committed any more
}
"""The phases that may follow each phase."""


def next_phase(now: Phase, wanted: Phase) -> Phase:
    """The phase `wanted`, if it is this one or may follow it. Raises ValueError for any other."""
    if wanted is not now and wanted not in TRANSITIONS[now]:
        raise ValueError(f"a partition that is {now.value} cannot become {wanted.value}")
    return wanted
