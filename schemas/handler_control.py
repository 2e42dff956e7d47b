"""What Redis keeps of the handlers of a consumer group as a whole: pauses, and what its workers know of them. Pure.

| key | field | value |
| --- | --- | --- |
| `ns:control:<group>` | `revision` | grows whenever a command changes pauses or jobs |
| | `paused <handler>` | Pause, msgpack; removed at the end of the pause |
| `ns:handlers:<group>` | worker id | its handlers by name, each with a HandlerReport; msgpack |

Commands write the first hash, and every worker reads it once a second. Each worker writes its own field of the second
one. The field of a worker that has ended stays until another worker starts, which begins with what the field says: so
a handler that is down stays down through deploys, and commands know the names of handlers while no worker runs.

Handler names are percent-encoded in both, as in keys (`encode_handler`).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from maskline.schemas.keys import decode_handler, encode_handler

REVISION_FIELD: Final = "revision"
_PAUSED_PREFIX: Final = "paused "

WHY_MAX_CHARS: Final = 500
"""Of an operator's text; it is shown in one line and read every second by all workers."""


class Pause(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pause of a handler by an operator."""

    since_ms: int = 0
    """Wall clock; 0 if the record cannot be read, which is a pause all the same."""
    why: str = ""
    by: str = ""
    """The operator, as user@host."""


class HandlerReport(msgspec.Struct, frozen=True, array_like=True):
    """What one worker process knows of a handler. Times are of its wall clock, in ms."""

    down_since_ms: int = 0
    """Since when it is down, a recovery since then included; 0 if it is not."""
    up_since_ms: int = 0
    """When it was last held no longer; 0 if it never was held."""
    recovering: bool = False
    """What has gathered while it was down or paused is being worked off."""
    events: tuple[str, ...] = ()
    """The events that it takes, by the names of their types. Empty in reports of older releases."""


class Control(NamedTuple):
    """The control hash of a group."""

    revision: int
    paused: dict[str, Pause]
    """By the handler's name."""


_encoder: Final = msgspec.msgpack.Encoder()
_pauses: Final = msgspec.msgpack.Decoder(Pause)
_reports: Final = msgspec.msgpack.Decoder(dict[str, HandlerReport])


def pause_field(handler: str) -> str:
    """The field of a handler's pause in the control hash."""
    return _PAUSED_PREFIX + encode_handler(handler)


def encode_pause(pause: Pause) -> bytes:
    """The value of that field."""
    return _encoder.encode(pause)


def read_control(fields: Mapping[str, bytes]) -> Control:
    """Read the control hash. A pause whose record cannot be read is one; other fields are ignored."""
    revision = fields.get(REVISION_FIELD, b"0")
    return Control(
        int(revision) if re.fullmatch(rb"[0-9]{1,19}", revision) else 0, dict(_read_pauses(fields))
    )


def encode_reports(reports: Mapping[str, HandlerReport]) -> bytes:
    """The value of a worker's field: all its handlers."""
    return _encoder.encode({encode_handler(name): report for name, report in reports.items()})


def decode_reports(value: bytes) -> dict[str, HandlerReport]:
    """Read a worker's field; no handlers if it cannot be read, as another release may have written it."""
    try:
        return {decode_handler(name): report for name, report in _reports.decode(value).items()}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _read_pauses(fields: Mapping[str, bytes]) -> Iterator[tuple[str, Pause]]:
    for field, value in fields.items():
        if field.startswith(_PAUSED_PREFIX):
            with contextlib.suppress(UnicodeDecodeError):  # the name of no handler
                yield decode_handler(field.removeprefix(_PAUSED_PREFIX)), _decode_pause(value)


def _decode_pause(value: bytes) -> Pause:
    try:
        return _pauses.decode(value)
    except msgspec.MsgspecError:
        return Pause()
