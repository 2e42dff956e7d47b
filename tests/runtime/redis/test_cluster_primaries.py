"""What is kept for each server of a cluster, as the map of its slots changes."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from maskline.runtime.redis.cluster import Cluster
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.slots import SLOTS, SlotMap
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import Keys

A, B, C, D = (Server("10.0.0.1", port) for port in range(1, 5))
PARTITIONS = 32


class Nodes:
    """Stands for the store: the map is what the test says."""

    is_cluster = True

    def __init__(self, *servers: Server) -> None:
        self.servers = servers

    async def find_slots(self) -> SlotMap:
        return SlotMap({slot: self.servers[slot % len(self.servers)] for slot in range(SLOTS)})


class Kept:
    def __init__(self, server: Server | None) -> None:
        self.server = server
        self.fault: Exception | None = None
        self.wrong: ConfigError | None = None
        self.started = self.stopped = 0
        self.up = True

    def start(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.started += 1

    async def wait_first_attempt(self) -> None:
        if self.wrong is not None:
            raise self.wrong

    async def stop(self) -> None:
        self.stopped += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Stage:
    """Shards of a cluster whose servers may misbehave."""

    def __init__(self, nodes: Nodes) -> None:
        self.kept: dict[Server | None, Kept] = {}
        self.faults: dict[Server, Exception] = {}
        self.changes = 0
        self.tasks = BackgroundTasks()
        self.cluster: Cluster[Kept] = Cluster(
            cast("RedisEndpoint", nodes), Keys("n"), PARTITIONS, self.tasks, self.make, self.changed
        )

    def make(self, server: Server | None) -> Kept:
        made = self.kept[server] = Kept(server)
        fault = None if server is None else self.faults.get(server)
        made.wrong = fault if isinstance(fault, ConfigError) else None
        made.fault = fault if made.wrong is None else None
        return made

    def changed(self) -> None:
        self.changes += 1

    def owners(self) -> set[Server | None]:
        found = [self.cluster.of_partition(number) for number in range(PARTITIONS)]
        return {None if one is None else one.server for one in found}


@pytest.mark.parametrize(
    "fault", [ConfigError("refused"), TypeError("a fault"), OSError(24, "no descriptor")]
)
async def test_primary_that_fails_to_start_does_not_delay_others(fault):
    nodes = Nodes(A, B)
    stage = Stage(nodes)
    await stage.cluster.start()
    try:
        stage.faults[C] = fault
        nodes.servers = (C, A, D)
        before = stage.changes
        stage.cluster.request_refresh()
        await until(lambda: stage.owners() == {A, C, D})
        assert stage.changes == before + 1
        assert stage.kept[D].started
        assert not stage.cluster.error
        await until(lambda: stage.kept[B].stopped)
        stage.kept[C].fault = None
        stage.cluster.request_refresh()
        await until(lambda: stage.kept[C].started)
        assert bool(stage.tasks.failures) == (not isinstance(fault, ConfigError))
    finally:
        await stage.cluster.stop()
        await stage.tasks.stop()
    assert all(kept.stopped == 1 for kept in stage.kept.values())


async def test_config_error_of_one_primary_is_raised_after_all_are_started():
    stage = Stage(Nodes(A, B, C))
    stage.faults[B] = ConfigError("other partitions")
    with pytest.raises(ConfigError, match="other partitions"):
        await stage.cluster.start()
    assert all(kept.started for kept in stage.kept.values())
    await stage.cluster.stop()


async def test_unreadable_slot_map_is_requested_again():
    nodes = Nodes(A)
    stage = Stage(nodes)
    await stage.cluster.start()
    find, asked = nodes.find_slots, asyncio.Event()

    async def fault() -> SlotMap:
        asked.set()
        raise KeyError("foreseen by nobody")

    nodes.find_slots = fault  # type: ignore[method-assign]
    stage.cluster.request_refresh()
    await asked.wait()
    nodes.find_slots, nodes.servers = find, (B,)  # type: ignore[method-assign]
    await until(lambda: stage.owners() == {B})
    assert stage.tasks.failures == {"cluster map": 1}
    await stage.cluster.stop()
