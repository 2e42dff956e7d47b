"""The timeline of a session, as the module `handlers.timeline` keeps it in Redis and `maskline session` reads it. Pure.

`{ns:p}:timeline:<group>:<session>` is a hash:

| field | holds |
| --- | --- |
| `e:<idempotency key>` | the msgpack of an Observation, phone numbers as tokens |
| `token` | the greatest fencing token that has written |
| `beyond` | events that came after EVENTS_MAX, which are only counted |
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from maskline.schemas.calls.observation import Observation, decode_observation

EVENTS_MAX: Final = 2_000
"""Events of one session that are kept: a session with a call a minute for an hour has some 500. One takes some 200
bytes, so a session takes 400 kB at most."""

EVENT_PREFIX: Final = b"e:"
TOKEN_FIELD: Final = b"token"
BEYOND_FIELD: Final = b"beyond"


class Timeline(NamedTuple):
    """What is kept of a session."""

    observations: tuple[Observation, ...]
    """In no order."""
    beyond: int = 0
    """Events that were not kept, as there was no room."""
    unreadable: int = 0
    """Events that another release has written, which this one cannot read."""


def read_timeline(fields: Mapping[bytes, bytes]) -> Timeline:
    """The timeline in the fields of its hash."""
    observations, unreadable = list[Observation](), 0
    for name, value in fields.items():
        if name.startswith(EVENT_PREFIX):
            try:
                observations.append(decode_observation(value))
            except ValueError:
                unreadable += 1
    beyond = fields.get(BEYOND_FIELD, b"0")
    return Timeline(tuple(observations), int(beyond) if beyond.isdigit() else 0, unreadable)
