"""`concurrency=` and `rate=` in a worker: never exceeded, nothing lost, order kept."""

import asyncio
import threading
import time
from types import ModuleType

import pytest
from dispatch_kit import until
from process_kit import Fleet, fleet, load

from maskline import on
from maskline.events import Event
from maskline.schemas.settings import Settings
from maskline.worker.gates.limits import BURST_S
from maskline.worker.node import WorkerNode

EVENTS = load(12, 4, window=0)


class Calls:
    """Handlers with these options, beside one without any, and what they got."""

    def __init__(self, *, plain: bool = False, **options) -> None:
        self.began: list[float] = []
        self.got: list[tuple[str, int]] = []
        self.others = 0
        self.at_once = self.most = 0
        self.module, lock = ModuleType("limited_handlers"), threading.Lock()

        async def limited(event, ctx) -> None:
            with lock:  # a plain one runs in several threads
                self.began.append(time.monotonic())
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            await asyncio.sleep(0.002)
            with lock:
                self.at_once -= 1
            self.got.append((event.session_uuid, ctx.sequence_number))

        def in_thread(event, ctx) -> None:
            asyncio.run(limited(event, ctx))

        async def free(event, ctx) -> None:
            self.others += 1

        self.module.limited = on(Event, name="limited", **options)(in_thread if plain else limited)
        self.module.free = on(Event, name="free")(free)


async def run(crew: Fleet, calls: Calls) -> None:
    settings = Settings(
        redis_url=crew.server.url,
        namespace=crew.namespace,
        partitions=crew.partitions,
        admin_port=0,
        handlers=(),
    )
    crew.put_all(EVENTS)
    node = WorkerNode(settings, handler_modules=[calls.module])
    await node.start()
    try:
        await until(lambda: len(calls.got) >= len(EVENTS))
        assert calls.others == len(EVENTS)
        await until(crew.drained)
    finally:
        await node.stop()
    assert len(calls.got) == len(EVENTS)
    for session in {session for session, _ in EVENTS}:
        numbers = [number for its_session, number in calls.got if its_session == session]
        assert numbers == [1, 2, 3, 4]


@pytest.fixture
def four(redis_server, namespace, tmp_path):
    with fleet(redis_server, namespace, tmp_path, partitions=4) as it:
        yield it


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_no_more_run_at_once_than_concurrency_allows(four, plain) -> None:
    calls = Calls(concurrency=3, plain=plain)
    await run(four, calls)
    assert calls.most == 3


async def test_no_more_begin_in_a_second_than_the_rate_allows(four) -> None:
    rate = 100
    calls = Calls(rate=rate)
    await run(four, calls)
    for number, at in enumerate(calls.began):
        assert number + 1 <= rate * (at - calls.began[0]) + rate * BURST_S + 1


async def test_both_hold_together(four) -> None:
    calls = Calls(rate=200, concurrency=1)
    await run(four, calls)
    assert calls.most == 1
