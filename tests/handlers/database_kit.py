"""Events and contexts as the handlers of `handlers.postgres` get them, and its store on a real PostgreSQL."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from postgres_kit import PostgresServer

from maskline.events import CallSummary, Event, SessionSecondPartyHangup
from maskline.handlers.database.store import Store, open_store
from maskline.schemas.settings import Settings
from maskline.worker.api.context import Context
from maskline.worker.entries.entry import Entry
from maskline.worker.ordering.reorder import Arrival, Release
from maskline.worker.ordering.state import NEW_SESSION

NUMBER, OTHER_NUMBER = "+14155550123", "+447700900123"
_sessions = itertools.count(1)


def hangup(**attributes: Any) -> SessionSecondPartyHangup:
    """An event of a session of its own, with both numbers."""
    usual = {
        "session_uuid": f"00000000-0000-4000-8000-{next(_sessions):012d}",
        "sequence_number": 4,
        "from_number": NUMBER,
        "to_number": OTHER_NUMBER,
        "amount": Decimal("0.0170"),
    }
    return SessionSecondPartyHangup(**(usual | attributes))


def context_of(
    event: Event | CallSummary,
    *,
    received_at: datetime | None = None,
    token: int = 1,
    replayed: bool = False,
    order: Any = "in_order",
    missing: tuple[int, ...] = (),
    fingerprint: bytes = b"12345678",
) -> Context:
    received_ms = int((received_at or datetime.now(UTC)).timestamp() * 1000)
    entry: Any = Entry(f"{received_ms}-0", b"", received_ms, replayed, event)
    number = getattr(event, "sequence_number", None)
    arrival = Arrival(number, fingerprint, None, False, False, False, received_ms, entry)
    return Context(Release(arrival, order, missing, 0, NEW_SESSION), "postgres.events", 1, token)


@contextlib.asynccontextmanager
async def store_of(server: PostgresServer, database: str, **settings: Any) -> AsyncIterator[Store]:
    async with open_store(Settings(postgres_url=server.url(database), **settings)) as store:
        yield store
