"""A callback that could not be handled, with why, and everything needed to try again.

A dead letter is an entry of its partition's stream `{ns:p}:dead` with one field, `d`, the msgpack map below. Its public
id is `<partition>-<entry id>`.
"""

import re
import traceback
from typing import Any, Final

import msgspec

from schemas.privacy import redact
from worker.outcome import Verdict, storable
from worker.reorder import Release
from worker.session import Entry

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
    """A stable word: `retries_exhausted`, `rejected`, `timed_out`, `crashed_worker`, `late`, `not_decodable`,
    `no_session_uuid`, …"""
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


def letter_of(
    release: Release, verdict: Verdict, *, group: str, handler: str | None, attempts: int,
    failure: BaseException | None, failed_at_ms: int,
) -> DeadLetter:  # fmt: skip
    """The dead letter of a released event; `failure` is what the handler failed with, if one was reached."""
    entry: Entry = release.arrival.payload
    where = "".join(traceback.format_exception(failure)) if failure is not None else ""
    # Numbers go before the beginning does: the second half of one would not be recognised.
    where = redact(storable(where[-2 * TRACEBACK_MAX_CHARS :]))[-TRACEBACK_MAX_CHARS:]
    return DeadLetter(
        group=group,
        entry_id=entry.entry_id,
        code=verdict.code,
        reason=verdict.reason,
        failed_at_ms=failed_at_ms,
        callback=entry.encoded,
        session_uuid=entry.event.session_uuid,
        event_name=entry.event.event_name,
        sequence_number=release.arrival.number,
        handler=handler,
        attempts=attempts,
        received_at_ms=entry.received_at_ms,
        traceback=where or None,
    )


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
