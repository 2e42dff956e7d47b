"""streaQ: `streaq run bench.worker.with_streaq:worker` works; `python -m bench.worker.with_streaq` adds the backlog."""

import os

import uvloop
from streaq import Worker

from bench.worker.peer import REDIS_URL, batches
from bench.worker.tally import handled, pause, pauses

worker = Worker(
    redis_url=REDIS_URL,
    concurrency=int(os.environ.get("BENCH_WORKERS", "32")),
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(silent=True, ttl=0)
async def handle(event: dict[str, str]) -> None:
    if pauses and not await pause(event["SessionUUID"]):
        return
    handled()


async def load() -> None:
    async with worker:
        for batch in batches():
            await worker.enqueue_many([handle.enqueue(event) for event in batch])


if __name__ == "__main__":
    uvloop.run(load())
