"""The clients: each keeps one callback after the other, for BENCH_SLICE_S; what that came to is printed as JSON."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from zlib import crc32

from bench import data
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE

CLIENTS = 64
WARM_S = 0.3
DIRECTORY = os.environ.get("BENCH_DIRECTORY", "")
SLICE_S = float(os.environ.get("BENCH_SLICE_S", "1"))

Keep = Callable[[int, bytes], Awaitable[None]]
"""Returns when a callback of that route is on the disk."""


async def drive(keep: Keep) -> None:
    """Keep callbacks as fast as they are kept; raises what `keep` raises."""
    events = [
        (
            crc32(event.session.encode()),
            encode_callback(RawCallback("POST", b"", FORM_TYPE, event.body, 0, "MA")),
        )
        for event in data.session_events(-(-data.REQUESTS // data.SESSION_EVENTS))
    ]
    kept, start_s = 0, time.monotonic() + WARM_S
    end_s = start_s + SLICE_S

    async def client(number: int) -> None:
        nonlocal kept
        while (now_s := time.monotonic()) < end_s:
            number = (number + CLIENTS) % len(events)
            await keep(*events[number])
            kept += now_s >= start_s

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await asyncio.sleep(WARM_S)
    used_s = time.process_time()
    await asyncio.gather(*clients)
    used_s, took_s = time.process_time() - used_s, time.monotonic() - start_s
    sys.stdout.write(json.dumps({"per_s": kept / took_s, "cpu_us": used_s / kept * 1e6}) + "\n")
