"""FastStream on Redis streams in its batch mode: a handler call, and one acknowledgement, for up to 500 events.

Not what the others do: an event that fails takes its batch with it. The backlog is that of with_faststream.
"""

import uvloop
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

from bench.worker.peer import REDIS_URL
from bench.worker.tally import handled, pause, pauses

broker = RedisBroker(REDIS_URL, logger=None)
app = FastStream(broker)


@broker.subscriber(
    stream=StreamSub("callbacks", group="workers", consumer="one", batch=True, max_records=500)
)
async def handle(events: list[dict[str, str]]) -> None:
    for event in events:
        if pauses and not await pause(event["SessionUUID"]):
            continue
        handled()


if __name__ == "__main__":
    uvloop.run(app.run())
