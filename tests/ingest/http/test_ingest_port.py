"""The port of ingest, from one set of processes to the next."""

import asyncio
import signal
import socket
from contextlib import ExitStack

import pytest
from ingest_kit import Client, Request, ask

from maskline.ingest.__main__ import reserve_port


def left_in_time_wait(host: str) -> int:
    """A port that has no listener any more, but a connection which its server closed first."""
    host = host.partition(",")[0]
    family = socket.getaddrinfo(host, None)[0][0]
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname())
        listener.accept()[0].close()
        assert client.recv(1) == b""
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::", "localhost,127.0.0.2"])
def test_port_with_connections_in_time_wait_can_be_bound(host):
    port = left_in_time_wait(host)
    with ExitStack() as held:
        assert reserve_port(host, port, held) == port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "", "::"])
def test_port_of_the_kernels_choice_stays_bound(host):
    with ExitStack() as held:
        port = reserve_port(host, 0, held)
        assert port > 0
        with (
            socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other,
            pytest.raises(OSError, match="in use"),
        ):
            other.bind((host, port))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_in_use_is_refused(host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other, ExitStack() as held:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            reserve_port(host, other.getsockname()[1], held)


async def test_one_process_becomes_two_and_one_again_while_clients_stay_connected(
    redis_server, namespace, run_ingest
):
    port = 0
    for arguments in ((), ("--processes", "2"), ()):
        process = run_ingest(*arguments, redis_url=redis_server.url, namespace=namespace, port=port)
        port = await asyncio.to_thread(process.port)
        assert (await ask(port, Request())).status == 200
        async with await Client.connect(port) as idle:
            assert (await idle.ask(Request().encode())).status == 200
            assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
            assert await idle.ended()
