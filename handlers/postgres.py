"""Stores every event, and every call's summary, in PostgreSQL (the extra `postgres`; MASKLINE_POSTGRES_URL).

An event counts as handled once its row is committed.

- *Resource*: one store for the process. It has a few connections, and writes many sessions' rows in one statement.
- *Idempotency*: `ctx.idempotency_key` is the row's key, so an event that comes again after a crash meets its own row.
- *Fencing*: a row keeps its `ctx.fencing_token`, and one of an older owner never replaces it.

While PostgreSQL is away the handlers fail, are *down* after a while, and what waits for them is stored once it is back.
A row that PostgreSQL cannot hold is a dead letter.
"""

from collections.abc import AsyncIterator
from typing import Final

from maskline import Context, on, resource
from maskline.events import CallSummary, Event
from maskline.handlers.database.store import Store, open_store
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings

SETTINGS: Final = load_settings()
if not SETTINGS.postgres_url:
    raise ConfigError("MASKLINE_POSTGRES_URL is not set: maskline.handlers.postgres needs it")


@resource
async def postgres_store() -> AsyncIterator[Store]:
    """The database, its schema brought up to date. Raises ConfigError for what only an operator can mend."""
    async with open_store(SETTINGS) as store:
        yield store


# A row that is missing is told by nothing but its absence, but no later row depends on it: do not park the session.
@on.every(name="postgres.events", on_give_up="skip")
async def store_event(event: Event, ctx: Context, postgres_store: Store) -> None:
    """Store an event; ends once it is committed."""
    await postgres_store.add_event(event, ctx)


@on(CallSummary, name="postgres.call_summaries", on_give_up="skip")
async def store_summary(summary: CallSummary, ctx: Context, postgres_store: Store) -> None:
    """Store a call that is over, unless a later summary of it is stored; ends once it is committed."""
    await postgres_store.add_summary(summary, ctx)
