"""Handlers that write down the start and the end of every call, so that a call cut by a kill shows.

What a callback says in `ChaosDo` is done: `slow` takes SLOW_S, `fail` fails at every attempt, `flaky` at the first.
The environment says where to write: CHAOS_HANDLERS_FILE.
"""

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # a worker finds this module by its path alone

from history import Began, Ended, Writer

from maskline import Context, on
from maskline.events import Event, SessionPartiesHangup, SessionTimeout

TAG, DO = "ChaosTag", "ChaosDo"
"""The parameters by which the traffic names a callback, and says how it is to be treated."""
HANDLERS = {"every": [], "ends": ["SessionPartiesHangup", "SessionTimeout"]}
RETRIES = 2
ATTEMPTS = RETRIES + 1
WORK_S = 0.02
"""So that a kill finds some calls under way."""
SLOW_S = 1.5

_RETRYING: dict[str, Any] = {
    "retries": RETRIES,
    "backoff_ms": 100,
    "backoff_max_ms": 400,
    "timeout_ms": 15_000,
}
_numbers = itertools.count()
_writer: list[Writer] = []


def write(fact: Began | Ended) -> None:
    if not _writer:
        _writer.append(Writer(Path(os.environ["CHAOS_HANDLERS_FILE"])))
    _writer[0].write(fact)


async def note(event: Event, ctx: Context, handler: str) -> None:
    call = f"{os.getpid()}-{next(_numbers)}"
    # Nothing is awaited before this line: what the worker looked at before the call is no older than the call.
    write(
        Began(
            call,
            os.getpid(),
            handler,
            str(event.extra.get(TAG, "")),
            event.session_uuid,
            ctx.sequence_number,
            event.event_name,
            ctx.order,
            list(ctx.missing),
            ctx.run,
            ctx.attempt,
            ctx.idempotency_key,
            ctx.fencing_token,
            time.monotonic(),
        )
    )
    do, outcome = event.extra.get(DO, ""), "cancelled"
    try:
        await asyncio.sleep(SLOW_S if do == "slow" else WORK_S)
        if do == "fail" or (do == "flaky" and ctx.attempt == 1):
            outcome = "failed"
            raise RuntimeError("as the callback asked")
        outcome = "done"
    finally:
        write(Ended(call, outcome, time.monotonic()))


@on.every(name="every", **_RETRYING)
async def every(event: Event, ctx: Context) -> None:
    await note(event, ctx, "every")


@on(SessionPartiesHangup, SessionTimeout, name="ends", **_RETRYING)
async def ends(event: Event, ctx: Context) -> None:
    await note(event, ctx, "ends")
