"""Clients of a spool: each stores one callback after the other for BENCH_SLICE_S. Prints the figures as JSON."""

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

Store = Callable[[int, bytes], Awaitable[None]]
"""Takes a partition hash and a value; returns when they are on the disk."""


async def drive(store: Store) -> None:
    """Store callbacks as fast as possible; raises what `store` raises."""
    events = [
        (
            crc32(event.session.encode()),
            encode_callback(RawCallback("POST", b"", FORM_TYPE, event.body, 0, "MA")),
        )
        for event in data.session_events(-(-data.REQUESTS // data.SESSION_EVENTS))
    ]
    stored, start_s = 0, time.monotonic() + WARM_S
    end_s = start_s + SLICE_S

    async def client(number: int) -> None:
        nonlocal stored
        while (now_s := time.monotonic()) < end_s:
            number = (number + CLIENTS) % len(events)
            await store(*events[number])
            stored += now_s >= start_s

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await asyncio.sleep(WARM_S)
    used_s = time.process_time()
    await asyncio.gather(*clients)
    used_s, took_s = time.process_time() - used_s, time.monotonic() - start_s
    sys.stdout.write(json.dumps({"per_s": stored / took_s, "cpu_us": used_s / stored * 1e6}) + "\n")
