import asyncio
import contextlib
import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector
from servers import free_port

from maskline.runtime.admin.server import AdminServer, Health
from maskline.schemas.errors import ConfigError

OK = Health(ok=True, details={"redis": "connected", "lag": 3})


@contextlib.asynccontextmanager
async def serving(live=lambda: OK, ready=lambda: OK, registry=None):
    server = AdminServer("127.0.0.1", 0, live=live, ready=ready, registry=registry or CollectorRegistry())
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            yield server, client
    finally:
        await server.stop()


async def test_health_and_readiness_are_asked_each_time():
    answers = [OK, Health(ok=False, details={"redis": "away"}), OK]
    async with serving(ready=lambda: answers.pop(0)) as (_, client):
        for status, body in [
            (200, {"ok": True, "redis": "connected", "lag": 3}),
            (503, {"ok": False, "redis": "away"}),
            (200, {"ok": True, "redis": "connected", "lag": 3}),
        ]:
            async with client.get("/readyz") as answer:
                assert answer.status == status
                assert answer.content_type == "application/json"
                assert answer.headers["Cache-Control"] == "no-store"
                assert await answer.json() == body
        async with client.get("/healthz") as answer:
            assert answer.status == 200


async def test_failing_health_check_is_a_failed_probe_and_the_server_goes_on():
    def fail():
        raise ValueError("+14155550123")

    async with serving(live=fail) as (_, client):
        async with client.get("/healthz") as answer:
            assert answer.status == 503
            assert await answer.json() == {"ok": False, "error": "the health check failed: ValueError"}
        async with client.get("/readyz") as answer:
            assert answer.status == 200


async def test_metrics_are_served_in_the_format_asked_for():
    registry = CollectorRegistry()
    Counter("maskline_things", "Things.", registry=registry).inc(3)
    async with serving(registry=registry) as (_, client):
        async with client.get("/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert "maskline_things_total 3.0" in await answer.text()
        async with client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        ) as answer:
            assert answer.content_type == "application/openmetrics-text"
            assert (await answer.text()).endswith("# EOF\n")


async def test_failing_collector_of_ours_is_a_500_and_the_server_goes_on():
    class Broken(Collector):
        def collect(self):
            raise ValueError("no")

        def describe(self):
            return []

    registry = CollectorRegistry()
    registry.register(Broken())
    async with serving(registry=registry) as (_, client):
        async with client.get("/metrics") as answer:
            assert answer.status == 500
            assert "ValueError" not in await answer.text()
        async with client.get("/healthz") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/callbacks", 404), ("POST", "/healthz", 405), ("HEAD", "/healthz", 200)],
)
async def test_nothing_else_is_served(method, path, status):
    async with serving() as (_, client), client.request(method, path) as answer:
        assert answer.status == status


async def test_taken_port_raises_config_error_that_names_the_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = AdminServer(
            "127.0.0.1", port, live=lambda: OK, ready=lambda: OK, registry=CollectorRegistry()
        )
        with pytest.raises(ConfigError, match=f"^MASKLINE_ADMIN_PORT: .*127.0.0.1:{port}.*in use"):
            await server.start()
    server = AdminServer("host.invalid", 0, live=lambda: OK, ready=lambda: OK, registry=CollectorRegistry())
    with pytest.raises(ConfigError, match=r"MASKLINE_ADMIN_PORT: .*host\.invalid"):
        await server.start()


async def test_stop_frees_the_port_even_with_a_connection_open():
    async with serving() as (server, client):
        async with client.get("/healthz"):
            pass
        await server.stop()
        socket.create_server(("127.0.0.1", server.port)).close()


def server_on(port, **options):
    return AdminServer(
        "127.0.0.1", port, live=lambda: OK, ready=lambda: OK, registry=CollectorRegistry(), **options
    )


async def test_taken_default_port_moves_to_the_next_free_one():
    servers = []
    port = free_port()
    try:
        for _ in range(3):
            servers.append(server_on(port, search=True, avoid=port + 1))
            await servers[-1].start()
        ports = [server.port for server in servers]
        assert ports[0] == port
        assert port + 1 < ports[1] < ports[2]
        await servers[1].stop()
        again = server_on(port, search=True, avoid=port + 1)
        await again.start()
        servers[1] = again
        assert again.port == ports[1]  # free again
    finally:
        for server in servers:
            await server.stop()


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET /readyz", b"GET /readyz HTTP/1.1\r\nHost: h\r\nX-Slow: ", b"\r\n"]
)
async def test_connection_whose_head_does_not_come_is_closed(monkeypatch, sent):
    monkeypatch.setattr("maskline.runtime.admin.server.KEEPALIVE_TIMEOUT_S", 0.2)
    async with serving() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        async with asyncio.timeout(60):
            while not reader.at_eof():
                if sent:
                    with contextlib.suppress(ConnectionError):
                        writer.write(b"\r\n" if sent == b"\r\n" else b"x")  # it goes on, a byte at a time
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(0.02):
                        await reader.read(1_000)
        writer.close()


async def test_connection_whose_body_does_not_come_is_closed(monkeypatch):
    monkeypatch.setattr("maskline.runtime.admin.server.BODY_TIMEOUT_S", 0.1)
    async with serving() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
