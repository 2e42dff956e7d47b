"""The kits that other tests stand on: a cluster and a Sentinel group that really fail over and really move slots."""

from collections.abc import Iterator

import pytest
import redis
from cluster_kit import ClusterServers, slot_of
from sentinel_kit import SentinelServers
from servers import binary_of, server_kinds

pytestmark = pytest.mark.server


@pytest.fixture(params=server_kinds())
def cluster(request, tmp_path) -> Iterator[ClusterServers]:
    cluster = ClusterServers(tmp_path, binary=binary_of(request.param)).start()
    yield cluster
    cluster.stop()


@pytest.fixture(params=server_kinds())
def sentinels(request, tmp_path) -> Iterator[SentinelServers]:
    sentinels = SentinelServers(tmp_path, binary=binary_of(request.param)).start()
    yield sentinels
    sentinels.stop()


def test_cluster_survives_a_failover_and_a_kill(cluster: ClusterServers):
    first = cluster.primary_of("{a}")
    assert len(cluster.primaries()) == 3
    assert [len(cluster.replicas_of(primary)) for primary in cluster.primaries()] == [1, 1, 1]
    with cluster.client() as client:
        for number in range(100):
            client.set(f"{{{number}}}", number)

    second = cluster.failover(first, graceful=True)
    assert second is not first
    assert cluster.primary_of("{a}") is second
    assert cluster.replicas_of(second) == [first]

    assert cluster.failover(second, graceful=False) is first
    assert second not in cluster.alive
    assert cluster.primary_of("{a}") is first
    cluster.restart(second)
    assert cluster.replicas_of(first) == [second]
    with cluster.client() as client:
        assert [client.get(f"{{{number}}}") for number in range(100)] == [b"%d" % n for n in range(100)]


def test_moved_slot_has_its_data_and_redirects_meanwhile(cluster: ClusterServers):
    slot, source = slot_of("{a}"), cluster.primary_of("{a}")
    target = next(node for node in cluster.primaries() if node is not source)
    keys = [f"{{a}}{number}" for number in range(25)]
    redirected: list[str] = []

    def look(moved: int) -> None:
        """Ask the old owner for everything, as a client with an old map does."""
        with source.client() as client:
            for key in keys:
                try:
                    client.get(key)
                except redis.ResponseError as error:
                    redirected.append(type(error).__name__)
        assert redirected.count("AskError") >= moved

    with cluster.client() as client:
        for key in keys:
            client.xadd(key, {"c": key}, id="1-1")
        assert cluster.move_slot(slot, target, between=look) == len(keys)
        assert cluster.primary_of("{a}") is target
        assert [client.xlen(key) for key in keys] == [1] * len(keys)
    assert source.cluster("COUNTKEYSINSLOT", slot) == 0
    with pytest.raises(redis.exceptions.MovedError):
        source.ask("GET", keys[0])


def test_sentinels_promote_a_replica_and_take_the_old_primary_back(sentinels: SentinelServers):
    first = sentinels.primary()
    with first.client() as client:
        client.set("a", "1")
        assert client.wait(2, 5_000) == 2
    assert sentinels.kill_primary() is first
    second = sentinels.until_failed_over()
    assert second is not first
    with second.client() as client:
        assert client.get("a") == b"1"
        client.set("a", "2")
    sentinels.restart_killed()
    assert sentinels.primary() is second
    with first.client() as client:
        assert client.info("replication")["role"] == "slave"
        assert client.get("a") == b"2"
