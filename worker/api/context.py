"""The context that a handler gets with an event: its order, its attempt, its keys, a logger."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from maskline.runtime.logs import get_logger
from maskline.schemas.callback import RawCallback, decode_callback
from maskline.worker.entries.entry import Entry
from maskline.worker.ordering.reorder import Order, Release

_log = get_logger("maskline.handler")


class Context(msgspec.Struct, eq=False, gc=False):
    """One attempt of one handler at one event. Everything but `log` is read-only."""

    _release: Release
    _handler: str
    attempt: int
    """1 for the first try, 2 for the second, …"""
    fencing_token: int
    """Grows with every change of the session's owner: a database that remembers the greatest one it has seen can refuse
    a write from an owner that was cut off and does not know it yet."""
    _log: Any = None
    skipped: tuple[int, ...] = ()
    """The session's numbers before it that this handler never handled: they went to its dead letters, and
    `on_give_up="skip"` or an operator let the session go on without them. The last 64."""

    def __repr__(self) -> str:
        # The event is left out, as it has phone numbers.
        return f"Context({self.idempotency_key}, handler={self._handler!r}, attempt={self.attempt})"

    @property
    def _entry(self) -> Entry:
        entry: Entry = self._release.arrival.payload
        return entry

    @property
    def session_uuid(self) -> str:
        """The event's SessionUUID."""
        return self._entry.event.session_uuid

    @property
    def sequence_number(self) -> int | None:
        """The event's SequenceNumber; None where it has none that can be read."""
        return self._release.arrival.number

    @property
    def order(self) -> Order:
        """`in_order`, `after_gap`, `late` or `unsequenced`."""
        return self._release.order

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers that were given up just before this event; only ever filled where `order` is `after_gap`."""
        return self._release.missing

    @property
    def run(self) -> int:
        """0, and one more each time the session's numbering started again."""
        return self._release.run

    @property
    def replayed(self) -> bool:
        """Whether an operator replayed it: handlers may have seen it before, under the same idempotency key."""
        return self._entry.replayed

    @property
    def idempotency_key(self) -> str:
        """The same at every redelivery of this callback, another for every other callback.

        `<SessionUUID>:<SequenceNumber, or u for none>:<fingerprint of the parameters, hexadecimal>`.
        """
        number = self._release.arrival.number
        where = "u" if number is None else str(number)
        return f"{self.session_uuid}:{where}:{self._release.arrival.fingerprint.hex()}"

    @property
    def entry_id(self) -> str:
        """The ID of the stream entry."""
        return self._entry.entry_id

    @property
    def received_at(self) -> datetime:
        """When ingest received the callback, in UTC; where the entry has no such time, when the stream took it."""
        entry = self._entry
        try:
            return datetime.fromtimestamp(entry.received_at_ms / 1000, UTC)
        except (OverflowError, ValueError, OSError):  # an entry that something else has written
            return datetime.fromtimestamp(self._release.arrival.arrived_ms / 1000, UTC)

    @property
    def callback(self) -> RawCallback:
        """The callback as ingest received it, byte for byte, with the real phone numbers in its `query` and `body`.

        It is decoded from the stream entry each time it is asked for: keep it if you need it twice.
        """
        return decode_callback(self._entry.encoded)

    @property
    def log(self) -> Any:
        """A structlog logger that bears the session, the event, its number, the handler and the attempt; `replayed` if
        it is.
        """
        if self._log is None:
            replayed = {"replayed": True} if self.replayed else {}
            self._log = _log.bind(
                session_uuid=self.session_uuid,
                event_name=self._entry.event.event_name,
                sequence_number=self.sequence_number,
                order=self.order,
                handler=self._handler,
                attempt=self.attempt,
                **replayed,
            )
        return self._log
