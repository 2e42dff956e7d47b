"""Workers on a real Redis Cluster: failovers and a moving slot under load lose nothing and keep the order."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster_kit import ClusterServers, slot_of
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order, by_session, callback, load
from servers import wait_until
from system_kit import AUTH_ID, AUTH_TOKEN, Traffic, ingest, post_all

from maskline.handlers.redis_store import RecordChange, RedisRecordStore
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.calls.observation import Observation
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

PARTITIONS = 12
DURABLE_MS = 5_000

pytestmark = pytest.mark.server


class ClusterFleet(Fleet):
    """The same fleet, whose partitions lie on three servers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._primaries: dict[str, redis.Redis] = {}

    def close(self) -> None:
        super().close()
        for client in self._primaries.values():
            client.close()

    def leases(self) -> dict[int, tuple[int, str]]:
        values = [self.client.get(self.keys.lease(number)) for number in range(self.partitions)]
        split = {number: value.decode().split(" ", 1) for number, value in enumerate(values) if value}
        return {number: (int(token), worker) for number, (token, worker) in split.items()}

    def put_durably(self, events: list[tuple[str, int]], servers: ClusterServers) -> None:
        """As ingest does with MASKLINE_DURABILITY=replicas:1: again, until a replica has it."""
        for session, number in events:
            wait_until(lambda: self._put_once(session, number, servers), within_s=PATIENCE_S)  # noqa: B023

    def _put_once(self, session: str, number: int, servers: ClusterServers) -> bool:
        stream = self.stream(session)
        try:
            if stream not in self._primaries:
                self._primaries[stream] = servers.primary_of(stream).client()
            client = self._primaries[stream]
            client.xadd(stream, {CALLBACK_FIELD: callback(session, number)})
            return bool(client.wait(1, DURABLE_MS))
        except Exception:  # noqa: BLE001 - whatever a failing cluster says: it did not take it
            self._primaries.pop(stream, None)  # asked again: all servers, which takes its time
            return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path / "cluster").start()
    yield servers
    servers.stop()


@pytest.fixture
def crew(cluster: ClusterServers, namespace: str, tmp_path: Path) -> Iterator[ClusterFleet]:
    it = ClusterFleet(cluster, namespace, tmp_path, partitions=PARTITIONS)  # type: ignore[arg-type]
    yield it
    it.close()


def in_order(crew: ClusterFleet, events: list[tuple[str, int]]) -> None:
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    assert not crew.dead_letters()


def command(crew: ClusterFleet, *arguments: str, **settings: str) -> Any:
    """Run a command of the operator's that is to succeed; what it prints as JSON."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("maskline")), *arguments, "--json"],
        env=crew.environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_partitions_are_shared_over_all_servers(crew: ClusterFleet, cluster: ClusterServers):
    crew.start()
    crew.start()
    crew.until_balanced(2)
    events = load(60, 10)
    crew.put_all(events)
    in_order(crew, events)
    assert len(crew.calls()) == len(events)
    owners = {cluster.primary_of(crew.keys.callbacks(number)).port for number in range(PARTITIONS)}
    assert len(owners) == 3
    told = command(crew, "status")
    assert (told["stored"], told["unread"], told["pending"]) == (len(events), 0, 0)
    assert sorted(told["workers"].values()) == [PARTITIONS // 2] * 2
    # One that is waiting for a number gets it in time, and a gap is given up, without a blocking read.
    crew.put("gap", 2)
    wait_until(lambda: sum(worker.metric("events_held") for worker in crew.workers) == 1, within_s=PATIENCE_S)
    crew.put("gap", 1)
    assert [call.order for call in crew.until_calls(2, "gap")] == ["in_order", "in_order"]
    # The pauses lie on one server, the workers' handlers perhaps on another, the retry queues on all.
    assert [handler["name"] for handler in told["handlers"]] == ["record"]
    assert command(crew, "pause", "record")["changed"]
    wait_until(
        lambda: all(worker.metric("handler_paused", handler="record") for worker in crew.workers),
        within_s=PATIENCE_S,
    )
    crew.put_all((f"paused{number}", 1) for number in range(12))
    crew.until_drained()
    assert not crew.calls("paused")
    told = command(crew, "status")
    assert (told["set_aside"], told["handlers"][0]["paused"]) == (12, True)
    assert command(crew, "resume", "record")["waiting"] == 12
    crew.until_calls(12, "paused")
    # A replay is kept on one server, and carried out on all.
    report = command(crew, "replay", "--since", "2000-01-01", "--yes")
    assert (report["state"], report["selected"], report["succeeded"]) == ("done", *[len(events) + 14] * 2)
    assert [job["id"] for job in command(crew, "replay", "list")] == [report["id"]]
    # Refused callbacks are kept on one server, and released to all.
    with ingest(crew, auth_tokens=f"{AUTH_ID}:mistaken") as url:
        assert post_all(url, [f"refused{number}" for number in range(12)], 1) == {403}
    tokens = f"{AUTH_ID}:{AUTH_TOKEN}"
    assert command(crew, "refused", "release", "--all", "--yes", auth_tokens=tokens)["released"] == 12
    assert command(crew, "refused", "list") == {"groups": [], "requests": []}
    assert {call.session for call in crew.until_calls(12, "refused")} == {f"refused{n}" for n in range(12)}


def test_requested_failover_under_load_keeps_all_and_the_order(crew: ClusterFleet, cluster: ClusterServers):
    crew.start(RECORD_MS=5)
    crew.start(RECORD_MS=5)
    crew.until_balanced(2)
    events = load(60, 20)
    crew.put_all(events[:600])
    cluster.failover(cluster.primary_of(crew.keys.callbacks(0)), graceful=True)
    crew.put_all(events[600:])
    in_order(crew, events)


def test_killed_primary_under_load_keeps_all_and_the_order(crew: ClusterFleet, cluster: ClusterServers):
    crew.start(RECORD_MS=5)
    crew.start(RECORD_MS=5)
    crew.until_balanced(2)
    events = load(30, 10)
    crew.put_durably(events[:150], cluster)
    killed = cluster.primary_of(crew.keys.callbacks(0))
    cluster.failover(killed, graceful=False)
    cluster.restart(killed)
    failed_over = time.monotonic()
    crew.put_durably(events[150:], cluster)
    in_order(crew, events)
    assert any(call.start > failed_over for call in crew.calls())
    for ones in by_session(crew.calls()).values():
        for before, after in itertools.pairwise(ones):
            # What Redis has lost of the commits is handled again, under the same key.
            assert before.number != after.number or before.key == after.key


def test_new_primary_that_refuses_at_first_is_read_in_the_end(crew: ClusterFleet, cluster: ClusterServers):
    worker = crew.start()
    crew.until_balanced(1)
    primary = cluster.primary_of(crew.keys.callbacks(0))
    for node in cluster.replicas_of(primary):
        node.ask("ACL", "SETUSER", "default", "-client|setname")
    heir = cluster.failover(primary, graceful=True)
    theirs = {
        number for number in range(PARTITIONS) if cluster.primary_of(crew.keys.callbacks(number)) is heir
    }
    assert theirs
    events = load(40, 3)
    crew.put_all(events)
    elsewhere = [event for event in events if partition_of(event[0], PARTITIONS) not in theirs]
    crew.until_calls(len(elsewhere))
    assert {partition_of(call.session, PARTITIONS) for call in crew.calls()}.isdisjoint(theirs)
    heir.ask("ACL", "SETUSER", "default", "+client|setname")
    in_order(crew, events)
    assert worker.process.poll() is None


def test_moving_slot_under_load_keeps_all_and_the_order(crew: ClusterFleet, cluster: ClusterServers):
    crew.start(RECORD_MS=5)
    crew.start(RECORD_MS=5)
    crew.until_balanced(2)
    key = crew.keys.callbacks(0)
    slot = slot_of(key)
    source = cluster.primary_of(key)
    target = next(node for node in cluster.primaries() if node is not source)
    events = load(100, 10, name="move")
    crew.put_all(events[:500])
    crew.until_calls(100)
    moved = cluster.move_slot(slot, target, keys_a_step=1)
    assert moved > 3
    crew.put_all(events[500:])
    in_order(crew, events)


def test_callbacks_answered_through_a_failover_are_handled(crew: ClusterFleet, cluster: ClusterServers):
    """Ingest on a cluster: the partitions of the primary that was killed are spooled, those of the others go on."""
    crew.start()
    crew.start()
    with ingest(crew, durability="replicas:1") as url:
        with Traffic(url) as traffic:
            traffic.until(200)
            killed = cluster.primary_of(crew.keys.callbacks(0))
            cluster.failover(killed, graceful=False)
            traffic.until(200)
            cluster.restart(killed)
            traffic.until(200)
            moving = crew.stream("s0")
            target = next(node for node in cluster.primaries() if node is not cluster.primary_of(moving))
            cluster.move_slot(slot_of(moving), target, keys_a_step=1)
            traffic.until(200)
        traffic.until_handled(crew)
    assert set(traffic.answers) == {200}
    in_order(crew, traffic.taken)
    assert {call.order for call in crew.calls()} == {"in_order"}


async def test_records_of_modules_follow_their_slots(crew: ClusterFleet, cluster: ClusterServers):
    """What handlers keep beside the partitions, through a failover and a moved slot."""
    sessions = [f"record{number}" for number in range(12)]
    settings = Settings(redis_url=cluster.url, namespace=crew.namespace, partitions=PARTITIONS)
    store = RedisRecordStore(settings, "test", Keys.call_summary, Keys.call_summary_due, ttl_ms=60_000)
    async with store:

        async def keep_all(count: int) -> None:
            for session in sessions:
                one = Observation(idempotency_key=f"{session}:{count}:a", entry_id="1-0", event_name="E")
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        try:
                            await store.change(session, RecordChange(one, due_in_ms=0))
                        except RedisUnavailableError:
                            await asyncio.sleep(0.05)
                        else:
                            break

        await keep_all(1)
        assert len({cluster.primary_of(crew.stream(session)).port for session in sessions}) == 3
        moving = crew.stream(sessions[0])
        await asyncio.to_thread(cluster.failover, cluster.primary_of(moving), graceful=True)
        await keep_all(2)
        source = cluster.primary_of(moving)
        target = next(node for node in cluster.primaries() if node is not source)
        await asyncio.to_thread(cluster.move_slot, slot_of(moving), target)
        await keep_all(3)
        assert [(await store.read(session)).count for session in sessions] == [3] * len(sessions)
        assert sorted(await store.due(100)) == sorted(sessions)
