"""How far the handlers of dead letters have come in a partition, and what that says about the next letter. Pure.

Redis keeps it (`commands/lua/dead_seen.lua`). A letter is begun there before its handlers are called, and done after.
So a worker that takes a partition over can tell what was under way, and a letter whose handlers bring every worker down
is passed over in the end.
"""

from typing import Final, NamedTuple, Self

STARTS_MAX: Final = 3
"""How often the handlers of a letter are called, if their worker goes down each time, before the letter is passed
over."""

_NONE: Final = "-"


class Seen(NamedTuple):
    """The state of a partition. IDs are those of entries in `{ns:p}:dead`."""

    done: str
    """The last letter whose handlers were called, or that was passed over."""
    begun: str | None
    """The letter after it whose handlers are under way, or were when their worker went down."""
    starts: int
    """How often that was begun."""
    token: int
    """The fencing token of whoever wrote this."""

    @classmethod
    def read(cls, value: bytes) -> Self:
        """Read what Redis keeps. Raises ValueError for anything else."""
        done, begun, starts, token = value.decode().split(" ")
        return cls(done, None if begun == _NONE else begun, int(starts), int(token))

    def encode(self) -> str:
        """As Redis keeps it."""
        return f"{self.done} {self.begun or _NONE} {self.starts} {self.token}"

    def starts_of(self, letter_id: str) -> int:
        """How often the handlers of a letter were begun and did not end."""
        return self.starts if self.begun == letter_id else 0

    def under_way_elsewhere(self, letter_id: str, token: int) -> bool:
        """Whether another tenure has begun the letter: its worker may still be at it, or have gone down."""
        return self.begun == letter_id and self.token != token

    def begin(self, letter_id: str, token: int) -> "Seen":
        """The state once the letter's handlers are about to be called."""
        return Seen(self.done, letter_id, self.starts_of(letter_id) + 1, token)

    def finish(self, letter_id: str, token: int) -> "Seen":
        """The state once the letter's handlers were called, or it was passed over."""
        return Seen(letter_id, None, 0, token)
