"""Dead letters: callbacks that could not be handled, each with the reason and everything needed to try again.

A dead letter is an entry of its partition's stream `{ns:p}:dead` with one field, `d`, the msgpack map below. Its public
id is `<partition>-<entry id>`.
"""

import re
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from maskline.worker.entries.entry import Entry
from maskline.worker.entries.failure_group import group_key
from maskline.worker.error_text import (
    NO_ORIGIN,
    Origin,
    error_message,
    origin_of,
    short_traceback,
    storable_text,
)
from maskline.worker.ordering.reorder import Arrival, Order, Release

DEAD_FIELD: Final = b"d"

LETTER_MAX_BYTES: Final = 4_096
"""The bound of a letter without its callback: Redis keeps every letter in memory until an operator has dealt with
it."""

REASON_MAX_BYTES: Final = 1_024
NAME_MAX_BYTES: Final = 512
"""The bound of each name in a letter that is cut: a SessionUUID is no longer, and the callback has the other names
whole."""

ORIGIN_MAX_BYTES: Final = 200
"""The bound of an exception's name and of a function's place in a letter that is cut."""

MISSING_MAX: Final = 64
"""The missing numbers in a letter that is cut, the last ones."""

HEADS_BYTES: Final = 64
"""Room for what msgpack writes before texts and bytes: their type and length."""

INTERNAL_ERROR: Final = "internal_error"
"""The code of a letter about a fault in maskline."""


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says why one handler, or every one if none was reached, will not get a callback."""

    group: str
    """The consumer group that gave up; others may have handled it."""
    entry_id: str
    """The callback's entry in `{ns:p}:callbacks`, which retention may trim."""
    code: str
    """A stable word: `retries_exhausted`, `rejected`, `timed_out`, `crashed_worker`, `late`, `not_decodable`,
    `no_session_uuid`, `internal_error`, …"""
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
    """The traceback: the user's own lines, and the exceptions' messages. If it is too long, its end."""
    foreign_fields: list[tuple[bytes, bytes]] = []
    """The fields of an entry that maskline did not write."""
    parked: bool = False
    """Later events of the session wait for the handler behind this letter."""
    error_type: str | None = None
    """The name of the handler's exception; None if maskline ended the attempt, or made none."""
    frame: str | None = None
    """The user's own innermost function in the traceback: `<file's name>:<function>`."""
    group_key: str | None = None
    """What went wrong, as `failure_group.group_key` groups it; None in letters of older releases."""
    order: Order | None = None
    """The event's place in the order of its session, with `run` and `missing`, so that a replay tells the handler the
    same. None if it had none, and in letters of older releases."""
    run: int = 0
    missing: tuple[int, ...] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The fields that `repr` and `rich` may show: never the callback, which holds phone numbers."""
        hidden = {"callback": len(self.callback), "foreign_fields": len(self.foreign_fields)}
        return [(name, hidden.get(name, getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"DeadLetter({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Cause(NamedTuple):
    """Why an event is given up."""

    code: str
    """As `DeadLetter.code`."""
    reason: str
    """One line for a person, without phone numbers."""
    handler: str | None = None
    attempts: int = 0
    traceback: str | None = None
    """As `error_text.short_traceback` writes it."""
    origin: Origin = NO_ORIGIN


def internal_error(error: BaseException, doing: str, *, attempts: int = 0) -> Cause:
    """The cause of giving up an event on which maskline itself failed; `doing` says at which step."""
    return Cause(
        INTERNAL_ERROR,
        internal_error_reason(error, doing),
        attempts=attempts,
        traceback=short_traceback(error, maskline_lines=True),
        origin=origin_of(error, maskline_lines=True),
    )


def internal_error_reason(error: BaseException, doing: str) -> str:
    """One line about a fault in maskline: `internal error while <doing>: <type>: <message>`."""
    described = f"{type(error).__name__}: {error_message(error)}".removesuffix(": ")
    return f"internal error while {doing}: {described}"


def dead_letter_of(
    arrival: Arrival,
    cause: Cause,
    *,
    group: str,
    failed_at_ms: int,
    release: Release | None = None,
    parked: bool = False,
) -> DeadLetter:
    """The dead letter of a decoded event; the arrival's payload is an `Entry`.

    `release`: the arrival's, if it was put in order. `parked`: as `DeadLetter.parked`.
    """
    entry: Entry = arrival.payload
    origin = cause.origin
    return DeadLetter(
        group=group,
        entry_id=entry.entry_id,
        code=cause.code,
        reason=cause.reason,
        failed_at_ms=failed_at_ms,
        callback=entry.encoded,
        session_uuid=entry.event.session_uuid,
        event_name=entry.event.event_name,
        sequence_number=arrival.number,
        handler=cause.handler,
        attempts=cause.attempts,
        received_at_ms=entry.received_at_ms,
        traceback=cause.traceback or None,
        parked=parked,
        error_type=origin.error_type,
        frame=origin.frame,
        group_key=_group_key(cause),
        order=None if release is None else release.order,
        run=0 if release is None else release.run,
        missing=() if release is None else release.missing,
    )


def _group_key(cause: Cause) -> str:
    """By the exception where there is one. An attempt that maskline ended has none, and its reason differs with how
    often that happened: the handler and the code say all.
    """
    origin = cause.origin
    message = origin.message if origin.error_type or cause.handler else cause.reason
    return group_key(cause.handler, cause.code, origin.error_type, origin.frame, message)


class GroupedLetter(Protocol):
    """The fields of a `DeadLetter` that `group_key_of` looks at, for readers that decode no others."""

    @property
    def group_key(self) -> str | None: ...  # noqa: D102 - as in DeadLetter
    @property
    def handler(self) -> str | None: ...  # noqa: D102
    @property
    def code(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


def group_key_of(letter: GroupedLetter) -> str:
    """The letter's `group_key`; for a letter of an older release by its reason, as it does not name its exception."""
    if letter.group_key is not None:
        return letter.group_key
    return group_key(letter.handler, letter.code, None, None, letter.reason)


_encode: Final = msgspec.msgpack.Encoder().encode


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The msgpack of a dead letter, cut to LETTER_MAX_BYTES besides its callback and its foreign fields."""
    try:
        encoded = _encode(letter)
    except (UnicodeEncodeError, OverflowError):
        return _encode(_cut(letter))
    rest = len(encoded) - len(letter.callback) - sum(len(a) + len(b) for a, b in letter.foreign_fields)
    return encoded if rest <= LETTER_MAX_BYTES else _encode(_cut(letter))


def _cut(letter: DeadLetter) -> DeadLetter:
    """The letter with its texts cut to the bound, and made storable: their beginnings, and the traceback's end."""
    names = ("group", "entry_id", "code", "session_uuid", "event_name", "handler")
    texts = {name: _beginning(getattr(letter, name), NAME_MAX_BYTES) for name in names}
    texts |= {name: _beginning(getattr(letter, name), ORIGIN_MAX_BYTES) for name in ("error_type", "frame")}
    numbers = {
        name: _storable_number(getattr(letter, name)) for name in ("sequence_number", "received_at_ms")
    }
    cut = replace(
        letter,
        **texts,
        **numbers,
        reason=_beginning(letter.reason, REASON_MAX_BYTES),
        traceback=None,
        missing=letter.missing[-MISSING_MAX:],
    )
    room = LETTER_MAX_BYTES - HEADS_BYTES - len(_encode(replace(cut, callback=b"", foreign_fields=[])))
    traceback = storable_text(letter.traceback or "").encode()[-max(room, 1) :].decode(errors="ignore")
    return replace(cut, traceback=traceback or None)


def _beginning(text: str | None, at_most: int) -> str | None:
    if text is None:
        return None
    encoded = storable_text(text).encode()
    return (
        encoded.decode() if len(encoded) <= at_most else encoded[: at_most - 3].decode(errors="ignore") + "…"
    )


def _storable_number(number: int | None) -> int | None:
    return number if number is not None and abs(number) < 2**63 else None


_decoder = msgspec.msgpack.Decoder(DeadLetter)

_PUBLIC_ID: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,20}-[0-9]{1,20})")


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Read a dead letter that `encode_dead_letter` wrote. Raises msgspec.MsgspecError for anything else."""
    return _decoder.decode(value)


def public_id(partition: int, entry_id: str) -> str:
    """The ID by which operators name a dead letter; `entry_id` is its own in `{ns:p}:dead`."""
    return f"{partition}-{entry_id}"


def split_public_id(text: str) -> tuple[int, str]:
    """The partition and entry ID that `public_id` was given. Raises ValueError for any other text."""
    match = _PUBLIC_ID.fullmatch(text)
    if match is None:
        raise ValueError("not the id of a dead letter")
    return int(match[1]), match[2]
