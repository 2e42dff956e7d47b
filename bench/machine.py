"""Cores, processes pinned to them, and a fresh Valkey for every slice."""

import contextlib
import itertools
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import redis

from maskline.console.embedded_server import find_server

ROOT: Final = Path(__file__).parent.parent
HOME: Final = ROOT / ".bench"
"""Peers, tools, data and logs of the benchmark. Ignored by git, safe to remove."""
WAIT_TIMEOUT_S: Final = 60.0
"""For what comes for certain, even on a loaded machine."""
PORTS: Final = range(10_000, 12_000)
"""Below the ports of outgoing connections, and apart from those of the tests."""

_ports: Final = itertools.cycle(random.SystemRandom().sample(PORTS, len(PORTS)))


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


class Cores(NamedTuple):
    """The cores to pin to; None if the system cannot pin, or has one core."""

    server: int | None
    """What is measured."""
    rest: int | None
    """The load generator and Valkey."""


def cores() -> Cores:
    """Two cores of those that this process may use."""
    if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
        return Cores(None, None)
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[1]) if len(allowed) > 1 else Cores(None, None)


def describe() -> dict[str, str]:
    """The machine, for readers of the results."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found = cores()
    return {
        "cpu": names[0].partition(": ")[2] if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": platform.system(),
        "pinned": "no" if found.server is None else f"server {found.server}, rest {found.rest}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def free_port() -> int:
    """A port on which nothing listens. Raises BenchError."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise BenchError("no port is free")


class Process:
    """A process in a session of its own, with its children; their output goes to a log."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        core: int | None,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> None:
        self.log = log
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*pinned, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=root,
                start_new_session=True,
                env=inherited | {"PYTHONPATH": str(root)} | dict(environment or {}),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """The process started, and its children. Linux only."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                if (
                    int(fields[3]) == self.pid
                ):  # the session: a supervisor gives its children groups of their own
                    found.append(int(entry.parent.name))
        return sorted(found) or [self.pid]

    def check(self) -> None:
        """Raises BenchError if the process has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self.log.name}: it ended:\n{self.log.read_text()[-2000:]}")

    def end(self) -> None:
        """Send SIGTERM to the process, as a service manager would."""
        self._process.terminate()

    def wait_until_ended(self, within_s: float) -> None:
        """Wait for its end. Raises BenchError if it fails or takes longer than `within_s`."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.log.name}: it took more than {within_s:g} s") from None
        if code:
            raise BenchError(f"{self.log.name}: exit code {code}:\n{self.log.read_text()[-2000:]}")

    def cpu_s(self) -> float:
        """CPU seconds that all of them used."""
        return cpu_s(self.pids())

    def memory_bytes(self) -> int:
        """Bytes of memory that all of them hold."""
        pages = 0
        for pid in self.pids():
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pause(self) -> None:
        """Stop all of them with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them run again, with SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill all of them, once a slice is measured."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, signum: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes used. Linux only: other systems have no clock of another process."""
    used = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            used += time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes it
    return used


@contextlib.contextmanager
def process(
    argv: Sequence[str],
    log: Path,
    *,
    core: int | None,
    environment: Mapping[str, str] | None = None,
    root: Path = ROOT,
) -> Iterator[Process]:
    """Run a process in the checkout `root`, and kill it at the end."""
    started = Process(argv, log, core=core, environment=environment, root=root)
    try:
        yield started
    finally:
        started.stop()


class Valkey(NamedTuple):
    """A fresh server, without data."""

    port: int
    process: Process
    client: "redis.Redis"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def used_bytes(self) -> int:
        """Bytes that the data set takes."""
        info = self.client.info("memory")
        return int(info["used_memory_dataset"])

    def wait_until_no_rewrite(self) -> None:
        """Wait for the end of a rewrite of the append-only file, and prevent further ones.

        During a rewrite every page that is written is copied first. A rewrite is due whenever the file has doubled, so
        it would fall into some slices by chance.
        """
        self.client.config_set("auto-aof-rewrite-percentage", 0)
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while self.client.info("persistence")["aof_rewrite_in_progress"]:
            self.process.check()
            if time.monotonic() > deadline:
                raise BenchError("Valkey's rewrite of its append-only file came to no end")
            time.sleep(0.05)


@contextlib.contextmanager
def valkey(*, appendfsync: str = "everysec", core: int | None) -> Iterator[Valkey]:
    """Run a Valkey on `core`; `appendfsync` is `off`, `everysec` or `always`."""
    port = free_port()
    (HOME / "data").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="valkey-", dir=HOME / "data") as directory:
        argv = [
            str(find_server()),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            directory,
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]
        if appendfsync == "off":
            argv += ["--appendonly", "no"]
        else:
            argv += ["--appendonly", "yes", "--appendfsync", appendfsync]
        with (
            process(argv, HOME / "logs" / "valkey.log", core=core) as server,
            redis.Redis(port=port, socket_timeout=WAIT_TIMEOUT_S) as client,
        ):
            wait_until_listening(port, server)
            client.ping()
            yield Valkey(port, server, client)


def wait_until_listening(port: int, server: Process) -> None:
    """Wait until a port accepts connections. Raises BenchError if the process ends first."""
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while time.monotonic() < deadline:
        server.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise BenchError(f"{server.log.name}: it did not listen within {WAIT_TIMEOUT_S:g} s")


def product_python() -> str:
    """The interpreter that has maskline and its dependencies, which is the present one."""
    return sys.executable


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []
