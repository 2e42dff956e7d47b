"""The messages of a worker and a sandbox over their socket pair: a request in, reports out.

The sandbox reports HandlerStarted right before it calls the handler, then HandlerDone or HandlerFailed; or
HandlerNotStarted if it cannot call the handler. Each message is a msgpack map after its length.
"""

from typing import Final, Literal

import msgspec

from maskline.worker.api.failure_verdict import FailureReport
from maskline.worker.error_text import Origin
from maskline.worker.ordering.reorder import Order

HEAD_BYTES: Final = 4
"""The length before each message, big-endian."""

REPORT_MAX_BYTES: Final = 1 << 20
"""Bounds one report: many times the longest traceback."""

CLOSE_S: Final = 5.0
"""How long closing the resources may take, after the last report."""


class SandboxRequest(msgspec.Struct, frozen=True):
    """The attempt that a sandbox is to run, and what it needs of the worker's settings."""

    modules: tuple[str, ...]
    """As MASKLINE_HANDLERS has them."""
    path: list[str]
    """The worker's search path for modules."""
    log_format: Literal["auto", "json", "console"]
    log_level: Literal["debug", "info", "warning", "error"]
    token_key: bytes
    """Logs must show the same token for a phone number as the worker's."""
    handler: str
    entry_id: str
    callback: bytes
    """The entry's field, as it lies in the stream: the msgpack of a RawCallback."""
    order: Order
    missing: tuple[int, ...]
    run: int
    attempt: int
    fencing_token: int
    skipped: tuple[int, ...] = ()
    replayed: bool = False
    ignored_parameters: frozenset[str] = frozenset()
    """As MASKLINE_IGNORED_PARAMETERS has them: the idempotency key is to be the worker's."""


class HandlerStarted(msgspec.Struct, frozen=True, tag=True):
    """The handler is called now."""


class HandlerDone(msgspec.Struct, frozen=True, tag=True):
    """The handler has handled the event."""


class HandlerFailed(msgspec.Struct, frozen=True, tag=True):
    """The handler failed. The worker decides what follows; this is what it needs of the exception, which is here."""

    report: FailureReport
    traceback: str
    origin: Origin


class HandlerNotStarted(msgspec.Struct, frozen=True, tag=True):
    """The handler could not be called."""

    reason: str


Report = HandlerStarted | HandlerDone | HandlerFailed | HandlerNotStarted

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(SandboxRequest)
_reports = msgspec.msgpack.Decoder(Report)


def encode(message: SandboxRequest | Report) -> bytes:
    """A message with its length before it."""
    encoded = _encoder.encode(message)
    return len(encoded).to_bytes(HEAD_BYTES, "big") + encoded


def decode_request(encoded: bytes) -> SandboxRequest:
    """The request in `encoded`, which is without its length."""
    return _requests.decode(encoded)


def decode_report(encoded: bytes) -> Report:
    """The report in `encoded`, which is without its length. Raises ValueError for anything that is none."""
    report: Report = _reports.decode(encoded)
    return report
