"""taskiq with taskiq-redis' stream broker.

`taskiq worker bench.worker.with_taskiq:broker` works; `python -m bench.worker.with_taskiq` adds the backlog.
"""

import asyncio

import uvloop
from taskiq_redis import RedisStreamBroker

from bench.worker.peer import REDIS_URL, batches
from bench.worker.tally import handled, pause, pauses

broker = RedisStreamBroker(REDIS_URL, queue_name="callbacks", consumer_group_name="workers", xread_count=500)


@broker.task("handle")
async def handle(event: dict[str, str]) -> None:
    if pauses and not await pause(event["SessionUUID"]):
        return
    handled()


async def load() -> None:
    await broker.startup()
    for batch in batches():
        await asyncio.gather(*(handle.kiq(event) for event in batch))
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(load())
