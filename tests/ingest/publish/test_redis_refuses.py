"""Whatever Redis says at the start or later, but that partitions differ: a node keeps what it takes, and says why."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import redis
from ingest_kit import Request, ask, node_settings, stored, until

from maskline.ingest.node import IngestNode
from maskline.runtime.redis import server_monitor
from maskline.schemas.settings import Settings, load_settings

GOOD = Request()


@contextlib.asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[IngestNode]:
    node = IngestNode(settings)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def ready(node: IngestNode) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{node.admin_url}/readyz") as response:
        return response.status, await response.json()


async def spools(node: IngestNode, reason: str) -> dict[str, Any]:
    """It answers 200, has the callback in the spool, is ready and says why; what /readyz says."""
    assert (await ask(node.port, GOOD)).status == 200
    status, health = await ready(node)
    assert (status, health["redis"]["takes"], health["spool"]["callbacks"]) == (200, False, 1)
    assert reason in health["redis"]["reason"]
    return health


def password(client: redis.Redis, wrong: bool) -> None:
    client.config_set("requirepass", "sesame" if wrong else "")


def no_rights(client: redis.Redis, wrong: bool) -> None:
    client.execute_command("ACL", "SETUSER", "default", "-xadd" if wrong else "+@all")
    client.execute_command("ACL", "SETUSER", "default", "-hsetnx" if wrong else "+@all")


def no_name(client: redis.Redis, wrong: bool) -> None:
    client.execute_command("ACL", "SETUSER", "default", f"{'-' if wrong else '+'}client|setname")


def evicts(client: redis.Redis, wrong: bool) -> None:
    client.config_set("maxmemory", 1 << 30)
    client.config_set("maxmemory-policy", "allkeys-lru" if wrong else "noeviction")


def read_only(client: redis.Redis, wrong: bool) -> None:
    if wrong:
        client.replicaof("127.0.0.1", 1)
    else:
        client.replicaof("no", "one")


REFUSALS: dict[str, tuple[Callable[[redis.Redis, bool], None], str]] = {
    "no password given": (password, "NOAUTH"),
    "no rights": (no_rights, "NOPERM"),
    "no right to a name": (no_name, "NOPERM"),
    "would evict": (evicts, "maxmemory-policy is allkeys-lru"),
    "read only": (read_only, "READONLY"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_node_started_while_redis_refuses_spools_until_it_accepts(own_redis, namespace, refusal):
    refuse, reason = REFUSALS[refusal]
    settings = node_settings(own_redis.url, namespace)
    with own_redis.client() as client:
        refuse(client, True)
        async with started(settings) as node:
            health = await spools(node, reason)
            found = health["redis"]["servers"].values()
            evicting = [one["code"] for server in found for one in server["errors"]]
            assert evicting == (["callbacks_evicted"] if refuse is evicts else [])
            if refuse is password:
                client.execute_command("AUTH", "sesame")
            assert not client.exists(f"{{{namespace}:0}}:callbacks")
            refuse(client, False)
            await until(lambda: node.metrics.drained == 1)
            await until(lambda: node.metrics.gauges().redis_connected)
            assert (await ready(node))[1]["redis"]["takes"]
            assert len(stored(client, settings)) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:wrong@127.0.0.1:{port}/0", "refuses the log-in"),
        ("redis://nobody:wrong@127.0.0.1:{port}/0", "WRONGPASS"),
        ("redis://127.0.0.1:{port}/9999", "DB index"),
        ("redis+cluster://127.0.0.1:{port}", "is no cluster"),
        ("redis+sentinel://127.0.0.1:{port}/rides/0", "SENTINEL"),
        ("rediss://127.0.0.1:{port}/0", "no answer within"),
        ("unix:///no/such/socket", "cannot be reached"),
    ],
)
async def test_node_started_with_an_unusable_redis_url_spools(redis_server, namespace, url, reason):
    settings = node_settings(url.replace("{port}", str(redis_server.port)), namespace)
    async with started(settings) as node:
        health = await spools(node, reason)
        assert "wrong" not in json.dumps(health)


async def test_health_names_the_address_in_use(redis_server, namespace, monkeypatch):
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        addresses = "127.0.0.9", "127.0.0.1"  # nobody listens on the first
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    url = f"redis://redis.example.com:{redis_server.port}/0"
    async with started(node_settings(url, namespace)) as node:
        events = (await ready(node))[1]["redis"]
        assert events["address"] == f"redis.example.com:{redis_server.port}"
        assert events["connected_to"] == [f"127.0.0.1:{redis_server.port}"]


async def test_eviction_policy_set_later_stops_publishing(own_redis, namespace, monkeypatch):
    monkeypatch.setattr(server_monitor, "INSPECT_INTERVAL_S", 0.05)
    settings = node_settings(own_redis.url, namespace)
    async with started(settings) as node:
        with own_redis.client() as client:
            evicts(client, True)
            await until(lambda: "allkeys-lru" in node._pool.details().get("reason", ""))
            await spools(node, "allkeys-lru")
            assert not stored(client, settings)
            evicts(client, False)
            await until(lambda: node.metrics.drained == 1)
            await until(lambda: not node._pool.details()["servers"][f"127.0.0.1:{own_redis.port}"]["errors"])


async def test_password_changed_in_the_url_file_is_used_without_a_restart(
    own_redis, namespace, tmp_path, run_ingest, spool_of_its_own
):
    file = tmp_path / "url"
    file.write_text(own_redis.url.replace("//", "//:old@"))
    with own_redis.client() as client:
        client.config_set("requirepass", "old")
        process = run_ingest(redis_url_file=file, namespace=namespace)
        port = await asyncio.to_thread(process.port)
        assert (await ask(port, GOOD)).status == 200
        client.execute_command("AUTH", "old")
        client.config_set("requirepass", "new")
        client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: client.execute_command("ACL", "LOG"))  # it has tried with the old one
        for _ in range(5):
            assert (await ask(port, GOOD)).status == 200
        file.write_text(own_redis.url.replace("//", "//:new@"))
        settings = load_settings({}, namespace=namespace, partitions=4)
        await until(lambda: len(stored(client, settings)) == 6)
        assert await asyncio.to_thread(process.kill, 15) == 0
        assert "redis url file reloaded" in process.log
