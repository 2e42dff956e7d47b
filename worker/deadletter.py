"""A callback that could not be handled, with why, and everything needed to try again.

A dead letter is an entry of its partition's stream `{ns:p}:dead` with one field, `d`, the msgpack map below. Its public
id is `<partition>-<entry id>`.
"""

import re
from typing import Any, Final

import msgspec

DEAD_FIELD: Final = b"d"

TRACEBACK_MAX_CHARS: Final = 16_000
"""The end of a longer traceback is kept: that is where the reason stands."""


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why one handler, or all of them where none was reached, will not see a callback."""

    group: str
    """The consumer group that gave up; others may have handled it."""
    entry_id: str
    """The callback's entry in `{ns:p}:callbacks`, which retention may trim."""
    code: str
    """A stable word: `retries_exhausted`, `rejected`, `timed_out`, `late`, `not_decodable`, `no_session_uuid`, …"""
    reason: str
    """One line for a person. Phone numbers in it are tokens."""
    failed_at_ms: int
    callback: bytes
    """The entry as it came: the value of its field, or, where it had none, nothing."""
    session_uuid: str | None = None
    event_name: str | None = None
    sequence_number: int | None = None
    handler: str | None = None
    """None if no handler was reached."""
    attempts: int = 0
    received_at_ms: int | None = None
    traceback: str | None = None
    foreign_fields: list[tuple[bytes, bytes]] = []
    """The fields of an entry that is none of ours."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` and `rich` may show: never the callback, which holds phone numbers."""
        hidden = {"callback": len(self.callback), "foreign_fields": len(self.foreign_fields)}
        return [(name, hidden.get(name, getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"DeadLetter({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


encode_dead_letter = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(DeadLetter)

_PUBLIC_ID: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,20}-[0-9]{1,20})")


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Raises msgspec.MsgspecError where the value is no dead letter."""
    return _decoder.decode(value)


def public_id(partition: int, entry_id: str) -> str:
    return f"{partition}-{entry_id}"


def split_public_id(text: str) -> tuple[int, str]:
    """The partition and entry ID of a public id. Raises ValueError for anything else."""
    match = _PUBLIC_ID.fullmatch(text)
    if match is None:
        raise ValueError("not the id of a dead letter")
    return int(match[1]), match[2]
