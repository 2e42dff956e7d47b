"""The file of one session's callbacks, as they lay in the stream: `maskline session UUID --export FILE` writes it, and
`maskline.testing.Harness.replay` feeds it again.

It is JSON, so that it can be read in a review and edited by hand. A query or a body is text where it is UTF-8; one that
is not stands as base64 in `query_base64` or `body_base64`, so that any bytes come back as they were.

    {"maskline_session_export": 1,
     "session_uuid": "…",
     "settings": {"gap_timeout_ms": 5000, "first_sequence": 1, "recording_sequence": "own", "late": "deliver",
                  "held_max": 256, "ignored_parameters": []},
     "complete": true,
     "callbacks": [{"at_ms": 1767225600000, "received_at_ms": 1767225599998, "method": "POST", "query": "",
                    "content_type": "application/x-www-form-urlencoded", "body": "EventName=…", "auth_id": ""}]}
"""

import base64
import binascii
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError

EXPORT_VERSION: Final = 1

EXPORT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of a file. A session has some dozen callbacks of 1 KiB; a hundred of the largest that ingest takes still fit."""

CALLBACKS_MAX: Final = 10_000
"""Of a file: what a replay in a test still handles within seconds."""

_Ms = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
"""Milliseconds since the epoch: a number that every JSON reader takes."""


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that decide the session's order, with the meaning and the defaults of the MASKLINE_ ones."""

    gap_timeout_ms: Annotated[int, msgspec.Meta(ge=0)] = 5_000
    first_sequence: Annotated[int, msgspec.Meta(ge=0)] = 1
    recording_sequence: Literal["own", "shared"] = "own"
    late: Literal["deliver", "dead"] = "deliver"
    held_max: Annotated[int, msgspec.Meta(ge=1)] = 256
    ignored_parameters: tuple[str, ...] = ()


class ExportedCallback(msgspec.Struct, frozen=True, kw_only=True):
    """One callback, and when it lay in the stream."""

    at_ms: int
    """The stream's time: that of its entry's ID, milliseconds since the epoch."""
    callback: RawCallback


class SessionExport(msgspec.Struct, frozen=True, kw_only=True):
    """A session's callbacks in the order of their entries, and the settings that put them in order."""

    session_uuid: str
    callbacks: tuple[ExportedCallback, ...]
    settings: ExportSettings = ExportSettings()
    complete: bool = True
    """Whether every callback of the session was still retained, as far as the exporter could know."""


class _WrittenCallback(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    at_ms: _Ms
    received_at_ms: _Ms
    method: str
    query: str | msgspec.UnsetType = msgspec.UNSET
    query_base64: str | msgspec.UnsetType = msgspec.UNSET
    content_type: str
    body: str | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    auth_id: str = ""
    replayed: bool = False


class _WrittenExport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    maskline_session_export: int
    session_uuid: str
    settings: ExportSettings = ExportSettings()
    complete: bool = True
    callbacks: list[_WrittenCallback]


class _Head(msgspec.Struct, frozen=True):
    maskline_session_export: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_WrittenExport)
_head_decoder = msgspec.json.Decoder(_Head)


def encode_export(export: SessionExport) -> bytes:
    """The file of an export: indented JSON, with a newline at its end.

    Raises ConfigError where `decode_export` would not take it: more than CALLBACKS_MAX callbacks, more than
    EXPORT_MAX_BYTES, or times that go back.
    """
    _check(export)
    written = _WrittenExport(
        maskline_session_export=EXPORT_VERSION,
        session_uuid=export.session_uuid,
        settings=export.settings,
        complete=export.complete,
        callbacks=[_written(one) for one in export.callbacks],
    )
    encoded = msgspec.json.format(_encoder.encode(written), indent=1) + b"\n"
    if len(encoded) > EXPORT_MAX_BYTES:
        raise ConfigError(f"the session export has {len(encoded)} bytes, {EXPORT_MAX_BYTES} at most")
    return encoded


def decode_export(encoded: bytes) -> SessionExport:
    """Read a file that `encode_export` wrote, or that was edited by hand.

    Raises ConfigError, in one line that says what is wrong and where, for anything else. No line shows a value of the
    callbacks.
    """
    if len(encoded) > EXPORT_MAX_BYTES:
        raise ConfigError(f"not a session export: {len(encoded)} bytes, {EXPORT_MAX_BYTES} at most")
    try:
        version = _head_decoder.decode(encoded).maskline_session_export
        if version != EXPORT_VERSION:
            raise ConfigError(
                f"not a session export: version {version}, and this release reads {EXPORT_VERSION}"
            )
        written = _decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"not a session export: {error}") from None
    export = SessionExport(
        session_uuid=written.session_uuid,
        settings=written.settings,
        complete=written.complete,
        callbacks=tuple(_read(number, one) for number, one in enumerate(written.callbacks)),
    )
    _check(export)
    return export


def _check(export: SessionExport) -> None:
    if len(export.callbacks) > CALLBACKS_MAX:
        raise ConfigError(f"not a session export: {len(export.callbacks)} callbacks, {CALLBACKS_MAX} at most")
    for number, (before, after) in enumerate(pairwise(export.callbacks)):
        if after.at_ms < before.at_ms:
            raise ConfigError(
                "not a session export: callbacks stand in the order of the stream, and `at_ms` of "
                f"$.callbacks[{number + 1}] is before that of the one above it"
            )


def _written(exported: ExportedCallback) -> _WrittenCallback:
    callback = exported.callback
    query, query_base64 = _text(callback.query)
    body, body_base64 = _text(callback.body)
    return _WrittenCallback(
        at_ms=exported.at_ms,
        received_at_ms=callback.received_at_ms,
        method=callback.method,
        query=query,
        query_base64=query_base64,
        content_type=callback.content_type,
        body=body,
        body_base64=body_base64,
        auth_id=callback.auth_id,
        replayed=callback.replayed,
    )


def _text(raw: bytes) -> tuple[str | msgspec.UnsetType, str | msgspec.UnsetType]:
    """The bytes as text, or as base64 where they are no UTF-8: one of the two."""
    try:
        return raw.decode(), msgspec.UNSET
    except UnicodeDecodeError:
        return msgspec.UNSET, base64.b64encode(raw).decode()


def _read(number: int, written: _WrittenCallback) -> ExportedCallback:
    return ExportedCallback(
        at_ms=written.at_ms,
        callback=RawCallback(
            written.method,
            _bytes(number, "query", written.query, written.query_base64),
            written.content_type,
            _bytes(number, "body", written.body, written.body_base64),
            written.received_at_ms,
            written.auth_id,
            written.replayed,
        ),
    )


def _bytes(number: int, name: str, text: str | msgspec.UnsetType, encoded: str | msgspec.UnsetType) -> bytes:
    if isinstance(text, str):
        if isinstance(encoded, str):
            raise ConfigError(
                f"not a session export: $.callbacks[{number}] has both `{name}` and `{name}_base64`"
            )
        return text.encode()
    if not isinstance(encoded, str):
        return b""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"not a session export: `{name}_base64` of $.callbacks[{number}] is no base64"
        ) from None
