"""FastStream on Redis streams, a handler call an event, BENCH_WORKERS of them at a time.

`python -m bench.worker.with_faststream work`, or `load` for the backlog.
"""

import asyncio
import os
import sys

import uvloop
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

from bench.worker.peer import REDIS_URL, batches
from bench.worker.tally import handled, pause, pauses

broker = RedisBroker(REDIS_URL, logger=None)
app = FastStream(broker)
stream = StreamSub("callbacks", group="workers", consumer="one", max_records=500)


@broker.subscriber(stream=stream, max_workers=int(os.environ.get("BENCH_WORKERS", "1")))
async def handle(event: dict[str, str]) -> None:
    if pauses and not await pause(event["SessionUUID"]):
        return
    handled()


async def load() -> None:
    async with RedisBroker(REDIS_URL) as publisher:
        for batch in batches():
            await asyncio.gather(*(publisher.publish(event, stream="callbacks") for event in batch))


if __name__ == "__main__":
    uvloop.run(load() if sys.argv[1] == "load" else app.run())
