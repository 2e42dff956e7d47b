"""Keeps every callback, as ingest received it, in compressed segments: in a folder or an object store.

It runs as a group of its own, so that it gets every callback beside your handlers, and its waiting is nobody's:

    MASKLINE_GROUP=archive MASKLINE_HANDLERS=maskline.handlers.archive MASKLINE_CONCURRENCY=4096 maskline worker

A handler returns only when the segment with its callback is durable; until then the event is not handled. After a crash
the same callbacks come again, and may be in two segments: `entry_id` is the same in both, and readers take one
(`maskline replay --from-archive`). A store that is away fails the handler: the worker tries on for a week.

docs/modules/archive.md has the format, the settings, encryption, and how much a worker keeps.
"""

from collections.abc import AsyncIterator
from typing import Final

from maskline import Context, on, resource
from maskline.events import DeadLetterContext, DeadLetterView, Event
from maskline.handlers.segments.archive import CallbackArchive, open_archive
from maskline.schemas.callback import EMITTED_METHOD

WEEK_S: Final = 7 * 86_400
TIMEOUT_MS: Final = 300_000
"""Longer than a segment gathers and an object store's retries take: an attempt that is cut off may have succeeded."""


@resource
async def archive() -> AsyncIterator[CallbackArchive]:
    """The archive of this process; at the end it writes what has gathered."""
    async with open_archive() as opened:
        yield opened


@on.every(name="archive", give_up_after_s=WEEK_S, timeout_ms=TIMEOUT_MS)
async def keep(event: Event, ctx: Context, archive: CallbackArchive) -> None:
    """Keep the callback of an event. What is tried again comes alone, and does not wait for others."""
    await archive.keep(event.session_uuid, ctx.entry_id, ctx.callback, alone=ctx.attempt > 1)


@on.dead(name="archive of dead letters", timeout_ms=TIMEOUT_MS)
async def keep_unread(letter: DeadLetterView, ctx: DeadLetterContext, archive: CallbackArchive) -> None:
    """Keep a callback that reached no handler: it could not be decoded, or came late where those are not delivered.

    If that fails it stays what it is, a dead letter with its callback; replaying it brings it here again.
    """
    if letter.handler is None and letter.callback is not None and letter.callback.method != EMITTED_METHOD:
        await archive.keep(letter.session_uuid or "", letter.entry_id, letter.callback, alone=True)
        ctx.log.info("dead letter archived", code=letter.code)
