"""One record for each finished call: emits `CallSummary`, an event of its own, for `@on(CallSummary)`.

It keeps what each event says in Redis until the session is over, and works out from all of it which calls there were,
which of them are over, and what they cost (docs/modules/call-summary.md). If something arrives late that changes a
summary, it is emitted again with the next revision.

- **Resource**: one store for the process, with connections of its own to the worker's Redis.
- **Idempotency**: an event is kept under `ctx.idempotency_key`, so handling it again, after a crash or by a replay,
  changes nothing, and what does not change is not emitted.
- **Fencing**: `ctx.fencing_token` goes along with each write. A worker that was cut off, and whose session another one
  has by now, is refused.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from maskline import Context, on, resource
from maskline.events import Event
from maskline.handlers.redis_store import RedisRecordStore
from maskline.handlers.redis_store.call_store import CallStore
from maskline.handlers.redis_store.memory import HarnessStream, MemoryRecordStore
from maskline.schemas.keys import Keys
from maskline.schemas.settings import load_settings

SWEEP_S: Final = 5.0
"""Between two looks for sessions that are silent: one small command for each partition."""


@resource
async def call_store() -> AsyncIterator[CallStore]:
    """What is kept of sessions, in the worker's Redis. It also ends, now and then, the calls of silent sessions."""
    settings = load_settings()
    records = RedisRecordStore(
        settings,
        "call-summary",
        Keys.call_summary,
        Keys.call_summary_due,
        ttl_ms=settings.call_summary_ttl_s * 1000,
    )
    async with records:
        store = CallStore(records, settings)
        records.client.every("call summaries", SWEEP_S, store.sweep)
        yield store


@on.every(on_give_up="skip")  # a summary of what arrived is better than none: it names what is missing
async def summarize_calls(event: Event, ctx: Context, call_store: CallStore) -> None:
    """Keep what the event says, and emit the summaries that follow from it."""
    for summary in await call_store.add(event, ctx):
        ctx.log.info("call over", call=summary.call, revision=summary.revision, ended_by=summary.ended_by)


@asynccontextmanager
async def memory_store(harness: HarnessStream) -> AsyncIterator[CallStore]:
    """The same in the memory of a test (`maskline.testing`)."""
    records = MemoryRecordStore(harness)
    settings = load_settings(group="workers")  # the harness's
    store = CallStore(records, settings, wall_ms=lambda: harness.now_ms)
    records.sweep = store.sweep
    yield store


__harness_resources__ = {"call_store": memory_store}
