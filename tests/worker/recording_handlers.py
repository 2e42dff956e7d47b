"""Handlers that write down every call: the tests of worker processes read what happened from a file.

A session's name says how its events are treated: `fail…` raises, `slow…` takes ten times as long, `held…` takes until
the file HELD_UNTIL_FILE exists. The environment says the rest: RECORD_FILE, RECORD_MS (how long a call takes),
RECORD_TWICE (a second handler for every event).
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from maskline import Context, on, resource
from maskline.events import Event

HOLD_S = float(os.environ.get("RECORD_MS", "0")) / 1000
SLOW_FACTOR = 10


def write(**facts: Any) -> None:
    """One line by one write: lines of several processes do not mix."""
    line = json.dumps({"pid": os.getpid(), **facts}) + "\n"
    descriptor = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Recorder:
    """Knows whether it is open: a call outside of that shows."""

    open = False


@resource
async def recorder() -> AsyncIterator[Recorder]:
    it = Recorder()
    write(what="opened", at=time.monotonic())
    it.open = True
    yield it
    it.open = False
    write(what="closed", at=time.monotonic())


def may_end() -> bool:
    return Path(os.environ["HELD_UNTIL_FILE"]).exists()


async def note(event: Event, ctx: Context, recorder: Recorder, handler: str) -> None:
    start = time.monotonic()
    outcome = "cancelled"
    try:
        if HOLD_S:
            await asyncio.sleep(HOLD_S * (SLOW_FACTOR if event.session_uuid.startswith("slow") else 1))
        while event.session_uuid.startswith("held") and not may_end():
            await asyncio.sleep(0.01)
        if event.session_uuid.startswith("fail"):
            outcome = "failed"
            raise RuntimeError("as the session's name says")
        outcome = "done"
    finally:
        write(
            what="call", handler=handler, outcome=outcome, event_name=event.event_name,
            session=event.session_uuid, number=ctx.sequence_number, order=ctx.order, missing=ctx.missing, run=ctx.run,
            attempt=ctx.attempt, key=ctx.idempotency_key, token=ctx.fencing_token, entry_id=ctx.entry_id,
            start=start, end=time.monotonic(), open=recorder.open,
        )  # fmt: skip


@on.every(retries=2, backoff_ms=20, on_give_up="skip", name="record")
async def record(event: Event, ctx: Context, recorder: Recorder) -> None:
    await note(event, ctx, recorder, "record")


if os.environ.get("RECORD_TWICE"):

    @on.every(retries=0, name="again")
    async def again(event: Event, ctx: Context, recorder: Recorder) -> None:
        await note(event, ctx, recorder, "again")
