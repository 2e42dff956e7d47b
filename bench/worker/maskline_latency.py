"""maskline's handler for latencies: notes when each event was received and how long it took to get here.

At the stop they are written to the file BENCH_LATENCIES, two doubles each: Unix time of receipt, milliseconds taken.
A receipt is known to the millisecond it fell into, so what is noted is half a millisecond too much on average.
"""

import os
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

from maskline import Context, on, resource
from maskline.events import Event


@resource
async def noted() -> AsyncIterator["array[float]"]:
    them = array("d")
    yield them
    Path(os.environ["BENCH_LATENCIES"]).write_bytes(them.tobytes())  # noqa: ASYNC240 - at the end, in the way of nobody


@on.every(retries=0)
async def note(_: Event, ctx: Context, noted: "array[float]") -> None:
    received_s = ctx.received_at.timestamp()
    noted.extend((received_s, (time.time() - received_s) * 1000))
