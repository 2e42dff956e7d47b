"""Handlers that fail as a session's name says, until a file says that they are mended.

`wait…` asks for another try after RETRY_AFTER_MS (where GIVE_UP_FIRST is set, number 2 of it is given up unless it is
replayed, and the others succeed), `reject…` rejects number 2, `crash…` ends its process at the second
attempt at number 2. RECORD_FILE gets a line for each call; once MENDED_FILE exists, nothing fails any more.
"""

import json
import os
import time
from pathlib import Path

from maskline import Context, Reject, Retry, on
from maskline.events import Event


def write(handler: str, event: Event, ctx: Context, outcome: str) -> None:
    line = {
        "handler": handler, "session": event.session_uuid, "number": ctx.sequence_number, "attempt": ctx.attempt,
        "skipped": ctx.skipped, "replayed": ctx.replayed, "outcome": outcome, "pid": os.getpid(),
        "key": ctx.idempotency_key, "at": time.monotonic(),
    }  # fmt: skip
    descriptor = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def fail_as_named(handler: str, event: Event, ctx: Context) -> None:
    session, number = event.session_uuid, ctx.sequence_number
    if not Path(os.environ["MENDED_FILE"]).exists():
        if session.startswith("wait") and "GIVE_UP_FIRST" in os.environ:
            if number == 2 and not ctx.replayed:
                write(handler, event, ctx, "rejected")
                raise Reject("as GIVE_UP_FIRST says")
            if number == 2:
                write(handler, event, ctx, "failed")
                raise Retry(after_ms=60_000)
        elif session.startswith("wait"):
            write(handler, event, ctx, "failed")
            raise Retry(after_ms=int(os.environ.get("RETRY_AFTER_MS", "60000")))
        if session.startswith("crash") and number == 2:
            write(handler, event, ctx, "failed")
            if ctx.attempt == 1:
                raise Retry(after_ms=2_001)  # longer than it would be tried again in the worker's memory
            os._exit(9)
        if session.startswith("reject") and number == 2:
            write(handler, event, ctx, "rejected")
            raise Reject("as the session's name says")
    write(handler, event, ctx, "done")


@on.every(name="well")
async def well(event: Event, ctx: Context) -> None:
    write("well", event, ctx, "done")


@on.every(name="parks")
async def parks(event: Event, ctx: Context) -> None:
    fail_as_named("parks", event, ctx)


if os.environ.get("SKIP_TOO"):

    @on.every(name="skips", on_give_up="skip")
    def skips(event: Event, ctx: Context) -> None:
        fail_as_named("skips", event, ctx)
