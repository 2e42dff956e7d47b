"""Records what each event says about its session, as it is handled; `maskline session UUID` draws it.

So a session can be looked at for MASKLINE_TIMELINE_TTL_S after its last event, when its callbacks have left the streams
(MASKLINE_RETENTION_S), and with what handling alone tells for sure: what was late, what was missing. Phone numbers are
kept as the tokens that logs have.

- *Resource*: one client of the worker's Redis for all events of the process. What it keeps lies beside the session's
  partition, so that it moves with it on a cluster.
- *Idempotency*: an event is kept under `ctx.idempotency_key`, so one that comes again changes nothing.
- *Fencing*: the record remembers the greatest `ctx.fencing_token` that has written, and refuses a smaller one. A worker
  that was paused and has lost the session writes nothing any more, nor does it commit: its successor handles the event.
- *Giving up*: what could not be recorded for GIVE_UP_AFTER_S is skipped. A session never waits for its timeline.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from maskline import Context, on, resource
from maskline.events import Event
from maskline.handlers.redis_store import RecordChange, RecordStore, RedisRecordStore
from maskline.handlers.redis_store.memory import HarnessStream, MemoryRecordStore
from maskline.schemas.calls.observation import observe
from maskline.schemas.keys import Keys
from maskline.schemas.privacy import number_token
from maskline.schemas.settings import load_settings

GIVE_UP_AFTER_S: Final = 600
"""A failover, or a Redis that is full for a moment, is over by then. What waits takes room in the same Redis."""


class Timelines(NamedTuple):
    """Where timelines are kept."""

    store: RecordStore
    recording_shared: bool
    """Recording events are numbered with the others."""


@resource
async def timelines() -> AsyncIterator[Timelines]:
    """The worker's own Redis, by a connection of its own."""
    settings = load_settings()
    ttl_ms = settings.timeline_ttl_s * 1_000
    # A timeline is due for nothing, so the due times stay as they are.
    store = RedisRecordStore(settings, "timeline", Keys.timeline, Keys.call_summary_due, ttl_ms=ttl_ms)
    async with store:
        yield Timelines(store, settings.recording_sequence == "shared")


@on.every(name="timeline", give_up_after_s=GIVE_UP_AFTER_S, on_give_up="skip")
async def record(event: Event, ctx: Context, timelines: Timelines) -> None:
    """Keep what the event says: one round trip. Beyond 2,000 events of a session they are only counted."""
    observation = observe(event, ctx, number_as=number_token, recording_shared=timelines.recording_shared)
    await timelines.store.change(ctx.session_uuid, RecordChange(observation, ctx.fencing_token))


@asynccontextmanager
async def memory_timelines(harness: HarnessStream) -> AsyncIterator[Timelines]:
    """The same in the memory of a test (`maskline.testing`)."""
    yield Timelines(MemoryRecordStore(harness), load_settings().recording_sequence == "shared")


__harness_resources__ = {"timelines": memory_timelines}
