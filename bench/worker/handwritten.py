"""The base of the worker: a loop written by hand, without order, state or fencing.

XREADGROUP of 500, `parse_qsl`, `msgspec.convert`, await the handler, XACK; redis-py with hiredis, on uvloop.
BENCH_STREAMS: the streams, comma-separated. BENCH_LATENCIES: where latencies are noted (`bench.worker.latency_notes`).
"""

import asyncio
import os
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import uvloop
from redis.asyncio import Redis

from bench.worker.latency_notes import open_notes
from bench.worker.tally import handled, pause, pauses
from maskline.schemas.callback import RawCallback

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")
STREAMS = os.environ.get("BENCH_STREAMS", "").split(",")
GROUP = "workers"
COUNT = 500
BLOCK_MS = 1_000
NULLS = {"null", "None", "NULL", "none"}


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    event_name: str
    session_uuid: str = msgspec.field(name="SessionUUID")
    event_timestamp: str | None = None
    sequence_number: int | None = None
    from_number: str | None = msgspec.field(name="From", default=None)
    to_number: str | None = msgspec.field(name="To", default=None)
    first_party: str | None = None
    second_party: str | None = None
    virtual_number: str | None = None
    pin_authentication_status: str | None = None
    pin_retry_counter: int | None = None
    amount: Decimal | None = None
    billed_duration: int | None = None
    duration: int | None = None
    plivo_hangup_cause: str | None = None
    plivo_hangup_cause_code: int | None = None


note = open_notes()
decode_callback = msgspec.msgpack.Decoder(RawCallback).decode


def decode(callback: RawCallback) -> Event:
    pairs = parse_qsl(callback.body.decode())
    attributes = {name: text for name, text in pairs if text not in NULLS}
    return msgspec.convert(attributes, Event, strict=False)


async def handle(event: Event, received_at_ms: int) -> None:
    if note is not None:
        note(received_at_ms)
        return
    if pauses and not await pause(event.session_uuid):
        return
    handled()


async def main() -> None:
    redis = Redis.from_url(REDIS_URL)
    for name in STREAMS:
        await redis.xgroup_create(name, GROUP, id="0", mkstream=True)
    streams: dict[Any, Any] = dict.fromkeys(STREAMS, ">")
    while True:
        reply: Any = await redis.xreadgroup(GROUP, "one", streams, count=COUNT, block=BLOCK_MS)
        acks = redis.pipeline(transaction=False)
        for name, entries in reply:
            for _, fields in entries:
                callback = decode_callback(fields[b"c"])
                await handle(decode(callback), callback.received_at_ms)
            acks.xack(name, GROUP, *[entry_id for entry_id, _ in entries])
        await acks.execute()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
