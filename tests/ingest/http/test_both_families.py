"""A node that listens on `::` takes callbacks, and is asked for its health, by both families of addresses."""

import asyncio
import re
import signal
import socket

import pytest
from ingest_kit import Client, Request, node_settings, stored


def families() -> list[str]:
    """The loopback addresses that this machine has."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


async def status(address: str, port: int, request: bytes) -> int:
    async with Client(*await asyncio.open_connection(address, port)) as client:
        return (await client.ask(request)).status


@pytest.mark.parametrize(
    ("hosts", "arguments"),
    [
        ("::", ("--processes", "2")),
        ("[::]", ()),
        ("localhost,0.0.0.0,::", ()),
        ("localhost,0.0.0.0,::", ("--processes", "2")),
    ],
)
async def test_callbacks_come_in_by_both_address_families(
    redis_server, namespace, run_ingest, hosts, arguments
):
    process = run_ingest(
        *arguments, redis_url=redis_server.url, namespace=namespace, host=hosts, admin_host=hosts
    )
    ports = [await asyncio.to_thread(process.port) for _ in range(2 if arguments else 1)]
    admin_port = int(re.findall(r'"admin":"http://[^"]+:(\d+)"', process.log)[-1])
    for address in families():
        host = f"[{address}]" if ":" in address else address
        for port in ports:
            # The signature covers the URL as dialled, brackets and all.
            request = Request(host=f"{host}:{port}", pairs=[("SessionUUID", address), ("EventName", "e")])
            assert await status(address, port, request.encode()) == 200
        assert (
            await status(address, admin_port, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            == 200
        )
    with redis_server.client() as client:
        took = stored(client, node_settings(redis_server.url, namespace))
    assert {re.search(rb"SessionUUID=([\w.%]+)", callback.body)[1] for callback in took} == {
        address.replace(":", "%3A").encode() for address in families()
    }
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
