"""maskline's handler for latencies: records when each event was received, and how long it took to get here.

At the stop the records go to the file BENCH_LATENCIES, two doubles each: Unix time of receipt, milliseconds taken. A
receipt is known to the millisecond, so the latencies are half a millisecond too long on average.
"""

import os
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

from maskline import Context, on, resource
from maskline.events import Event


@resource
async def recorded() -> AsyncIterator["array[float]"]:
    latencies = array("d")
    yield latencies
    Path(os.environ["BENCH_LATENCIES"]).write_bytes(latencies.tobytes())  # noqa: ASYNC240 - nothing else runs at the end


@on.every(retries=0)
async def record(_: Event, ctx: Context, recorded: "array[float]") -> None:
    received_s = ctx.received_at.timestamp()
    recorded.extend((received_s, (time.time() - received_s) * 1000))
