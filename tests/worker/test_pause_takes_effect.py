"""A pause that begins while something is about to run: it does not run."""

import asyncio
from collections.abc import AsyncIterator
from types import ModuleType

import pytest
from dispatch_kit import until
from process_kit import Fleet, fleet

from maskline import on
from maskline.events import Event
from maskline.schemas.handler_control import Pause, encode_pause, pause_field
from maskline.schemas.settings import Settings
from maskline.worker.gates import control as control_module
from maskline.worker.node import WorkerNode


class Crew:
    """A worker with room for one session at a time, whose handler `first` waits in sessions called `slow`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.billed: list[str] = []
        module = ModuleType("pausable_handlers")

        @on(Event, name="first")
        async def first(event, ctx) -> None:
            if event.session_uuid == "slow":
                self.entered.set()
                await self.go_on.wait()

        @on(Event, name="bill")
        async def bill(event, ctx) -> None:
            self.billed.append(event.session_uuid)

        module.first, module.bill = first, bill
        settings = Settings(
            redis_url=fleet.server.url, namespace=fleet.namespace, partitions=fleet.partitions, admin_port=0,
            handlers=(), concurrency=1,
        )  # fmt: skip
        self.node = WorkerNode(settings, handler_modules=[module])

    async def pause(self) -> None:
        self.fleet.client.hset(self.fleet.keys.control, pause_field("bill"), encode_pause(Pause(1)))
        await until(lambda: self.node.gates.paused("bill") is not None)

    async def resume(self) -> None:
        self.fleet.client.hdel(self.fleet.keys.control, pause_field("bill"))
        await until(lambda: self.node.gates.paused("bill") is None)

    def set_aside(self) -> int:
        return self.node.counters.set_aside["bill"]


@pytest.fixture
async def crew(redis_server, namespace, tmp_path, monkeypatch) -> AsyncIterator[Crew]:
    monkeypatch.setattr(control_module, "READ_INTERVAL_S", 0.01)
    with fleet(redis_server, namespace, tmp_path, partitions=1) as it:
        crew = Crew(it)
        await crew.node.start()
        yield crew
        crew.go_on.set()
        await crew.node.stop()


async def test_next_handler_of_an_event_under_way(crew: Crew) -> None:
    crew.fleet.put("slow", 1)
    await crew.entered.wait()
    await crew.pause()
    crew.go_on.set()
    await until(lambda: crew.set_aside() == 1)
    await until(crew.fleet.drained)
    assert not crew.billed
    await crew.resume()
    await until(lambda: crew.billed == ["slow"])


async def test_retry_queue_that_was_taken_and_waits_for_room(crew: Crew) -> None:
    await crew.pause()
    crew.fleet.put("quick", 1)
    await until(lambda: crew.set_aside() == 1)
    await until(crew.fleet.drained)
    crew.fleet.put("slow", 1)
    await crew.entered.wait()
    await crew.resume()
    await until(lambda: any(partition.retry_queues for partition in crew.node.partitions))
    await crew.pause()
    crew.go_on.set()
    await until(crew.fleet.drained)
    await until(lambda: not any(partition.retry_queues for partition in crew.node.partitions))
    assert not crew.billed
    await crew.resume()
    await until(lambda: sorted(crew.billed) == ["quick", "slow"])
    assert crew.fleet.dead_letters() == []
