"""The handler of `maskline.handlers.postgres`, counted: MASKLINE_HANDLERS=bench.worker.postgres_handlers."""

from bench.worker.tally import handled
from maskline import Context, on
from maskline.events import Event
from maskline.handlers.database.store import Store
from maskline.handlers.postgres import postgres_store

__all__ = ["postgres_store", "store_event"]


@on.every(name="postgres.events", on_give_up="skip")
async def store_event(event: Event, ctx: Context, postgres_store: Store) -> None:
    await postgres_store.add_event(event, ctx)
    handled()
