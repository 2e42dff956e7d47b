"""Handlers that write down the start and the end of every call, so that a call cut by a kill shows.

| handler | takes | gives up | stands for |
| --- | --- | --- | --- |
| `every` | every event | after three tries, and parks | a handler with a bug that is mended one day |
| `ends` | ends of calls, of sessions | after three tries, and skips | one that may leave something out |
| `remote` | some events | never | one that calls a server, which is away for a while |

A callback says in `ChaosDo` what a handler does with it, as `every=bug ends=flaky`: `slow` takes SLOW_S, `flaky` fails
at the first try, `bug` fails and `reject` rejects until the file CHAOS_MENDED_FILE exists.

The environment says the rest: CHAOS_HANDLERS_FILE, where calls are written down; CHAOS_DOWNSTREAM_PORT, the port of the
server that `remote` calls.
"""

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # a worker finds this module by its path alone

from history import Began, Ended, HandlerTerms, Writer

from maskline import Context, Reject, on
from maskline.events import (
    Event,
    SessionFirstPartyHangup,
    SessionPartiesHangup,
    SessionRecordingCompleted,
    SessionSecondPartyAnswer,
    SessionSecondPartyInitiated,
    SessionSecondPartyRing,
    SessionTimeout,
)

TAG, DO = "ChaosTag", "ChaosDo"
"""The parameters by which the traffic names a callback, and says how it is to be treated."""
RETRIES = 2
ENDS = (SessionFirstPartyHangup, SessionPartiesHangup, SessionTimeout)
REMOTE = (
    SessionSecondPartyInitiated,
    SessionSecondPartyRing,
    SessionSecondPartyAnswer,
    SessionPartiesHangup,
    SessionRecordingCompleted,
)
HANDLERS = {
    "every": HandlerTerms(attempts=RETRIES + 1),
    "ends": HandlerTerms([kind.__name__ for kind in ENDS], attempts=RETRIES + 1, skips=True, held=True),
    "remote": HandlerTerms([kind.__name__ for kind in REMOTE], held=True),
}
WORK_S = 0.02
"""So that a kill finds some calls under way."""
SLOW_S = 1.5
TIMEOUT_MS = 15_000
REMOTE_TIMEOUT_MS = 2_500
"""The server may be silent when it is away."""
REMOTE_BACKOFF_MAX_MS = 1_000
"""So that what has failed is tried again soon after the server is back."""

_numbers = itertools.count()
_writer: list[Writer] = []


def write(fact: Began | Ended) -> None:
    if not _writer:
        _writer.append(Writer(Path(os.environ["CHAOS_HANDLERS_FILE"])))
    _writer[0].write(fact)


def treatment(event: Event, handler: str) -> str:
    """What the callback says that this handler does with it; empty for nothing special."""
    said = dict(one.split("=") for one in event.extra.get(DO, "").split())
    return said.get(handler, "")


def mended() -> bool:
    return Path(os.environ["CHAOS_MENDED_FILE"]).exists()


async def call_downstream(tag: str) -> None:
    """Ask the server to take an event. Raises OSError if it does not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["CHAOS_DOWNSTREAM_PORT"]))
    try:
        writer.write(f"{tag}\n".encode())
        if await reader.readline() != b"taken\n":
            raise OSError("the server did not take it")
    finally:
        writer.close()


async def note(event: Event, ctx: Context, handler: str) -> None:
    call, tag = f"{os.getpid()}-{next(_numbers)}", str(event.extra.get(TAG, ""))
    # Nothing is awaited before this line: what the worker looked at before the call is no older than the call.
    write(
        Began(
            call,
            os.getpid(),
            handler,
            tag,
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
            list(ctx.skipped),
            ctx.replayed,
        )
    )
    do, outcome = treatment(event, handler), "cancelled"
    try:
        await asyncio.sleep(SLOW_S if do == "slow" else WORK_S)
        if (do == "bug" and not mended()) or (do == "flaky" and ctx.attempt == 1):
            outcome = "failed"
            raise RuntimeError("as the callback asked")
        if do == "reject" and not mended():
            outcome = "rejected"
            raise Reject("as the callback asked")
        if handler == "remote":
            outcome = "failed"
            await call_downstream(tag)
        outcome = "done"
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        write(Ended(call, outcome, time.monotonic()))


@on.every(name="every", retries=RETRIES, backoff_ms=800, backoff_max_ms=2_000, timeout_ms=TIMEOUT_MS)
async def every(event: Event, ctx: Context) -> None:
    await note(event, ctx, "every")


@on(
    *ENDS,
    name="ends",
    retries=RETRIES,
    backoff_ms=2_000,
    backoff_max_ms=4_000,
    timeout_ms=TIMEOUT_MS,
    on_give_up="skip",
)
async def ends(event: Event, ctx: Context) -> None:
    await note(event, ctx, "ends")


@on(
    *REMOTE,
    name="remote",
    backoff_ms=100,
    backoff_max_ms=REMOTE_BACKOFF_MAX_MS,
    timeout_ms=REMOTE_TIMEOUT_MS,
)
async def remote(event: Event, ctx: Context) -> None:
    await note(event, ctx, "remote")
