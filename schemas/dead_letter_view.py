"""What a handler of dead letters gets: the letter, read-only, and a context."""

from datetime import datetime
from typing import Any

import msgspec

from maskline.schemas.call_summary import Handled
from maskline.schemas.callback import RawCallback


class DeadLetterView(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter: an event that a handler has given up, or a callback that no handler was reached for."""

    id: str
    """As `maskline dead` takes it."""
    session_uuid: str | None
    """None, as the event's name and number, if the callback could not be read so far."""
    event_name: str | None
    sequence_number: int | None
    handler: str | None
    """The handler's name; None if none was reached."""
    code: str
    """A stable word: `retries_exhausted`, `rejected`, `timed_out`, `crashed_worker`, `late`, `not_decodable`, …"""
    reason: str
    """One line for a person, without phone numbers."""
    attempts: int
    received_at: datetime | None
    """When ingest received the callback, in UTC."""
    failed_at: datetime
    parked: bool
    """Later events of the session wait for the handler behind it."""
    group: str
    """What went wrong: letters of one bug have the same, as `maskline dead groups` shows it."""
    traceback: str | None
    """The user's own lines and the exceptions' messages, without phone numbers."""
    event: Handled | None
    """The event, or call summary; None if the callback cannot be decoded. It holds phone numbers; `repr` shows none."""
    entry_id: str = ""
    """The ID of the callback's stream entry, as `Context.entry_id`."""
    callback: RawCallback | None = None
    """The request as ingest received it, byte for byte, also where it cannot be decoded as an event. None for an entry
    of the stream that maskline did not write."""


class DeadLetterContext(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the letter in a handler's call."""

    idempotency_key: str
    """The same if a crash repeats the call: pass it on to what must not happen twice."""
    fencing_token: int
    """As `Context.fencing_token`."""
    log: Any
    """A structlog logger that bears the letter's id, the handler of dead letters, the session and the event."""
