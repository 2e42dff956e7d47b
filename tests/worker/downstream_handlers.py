"""Two handlers of every event: `bill` fails while the file DOWNSTREAM_AWAY exists, `mail` never does."""

import os
import time
from pathlib import Path

from recording_handlers import write

from maskline import Context, on
from maskline.events import Event


def is_away() -> bool:
    return Path(os.environ["DOWNSTREAM_AWAY"]).exists()


def note(event: Event, ctx: Context, handler: str, outcome: str) -> None:
    now = time.monotonic()
    write(
        what="call", handler=handler, outcome=outcome, event_name=event.event_name, session=event.session_uuid,
        number=ctx.sequence_number, order=ctx.order, missing=ctx.missing, run=ctx.run, attempt=ctx.attempt,
        key=ctx.idempotency_key, token=ctx.fencing_token, entry_id=ctx.entry_id, start=now, end=now, open=True,
    )  # fmt: skip


@on.every(name="bill", backoff_ms=50)
async def bill(event: Event, ctx: Context) -> None:
    away = is_away()
    note(event, ctx, "bill", "failed" if away else "done")
    if away:
        raise ConnectionError("the billing service is away")


@on.every(name="mail")
async def mail(event: Event, ctx: Context) -> None:
    note(event, ctx, "mail", "done")
