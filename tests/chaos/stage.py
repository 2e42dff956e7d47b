"""Everything that a chaos run starts: Valkey, the ingest and worker processes, a proxy between each and Valkey.

Whatever is started is stopped when the stage is left, however the run ends. The processes are in sessions of their
own, so that Ctrl-C reaches the runner alone.
"""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import count as counting
from pathlib import Path
from typing import Any

import redis
from chaos_handlers import TAG
from history import Exit, Fact
from proxy import Proxy, fixed_port
from redis.backoff import NoBackoff
from redis.retry import Retry
from replicated_kit import Replicated
from servers import RedisServer
from traffic import AUTH_ID, AUTH_TOKEN

from maskline.schemas.callback import decode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.keys import Keys
from maskline.worker.entries.queue_item import QueueItem, decode_item

ROOT = Path(__file__).parents[2]
START_S = 30.0
"""A process on a loaded machine needs a second or two."""
STOP_S = 25.0
"""Longer than MASKLINE_STOP_TIMEOUT_MS."""
POLL_S = 0.02
INSPECT_TIMEOUT_S = 1.0
"""For the runner's own commands to Valkey, which may stand still."""

NAMESPACE = "chaos"
GAP_TIMEOUT_MS = 3_000
RETENTION_S = 20
"""Short, so that there is something to trim while entries are open."""

_SPOOL_FILE = re.compile(rf"spool-{NAMESPACE}-(\d+)\.db(-wal|-shm|)$")
_STARTED = {"ingest": '"event":"ingest started"', "worker": '"event":"worker started"'}


class Node:
    """An ingest or worker process at its place: what is started there after a kill has the same ports and spool."""

    def __init__(
        self,
        role: str,
        index: int,
        environment: dict[str, str],
        proxy: Proxy,
        directory: Path,
        note: Callable[[Fact], None],
    ) -> None:
        self.name = f"{role}-{index}"
        self.role = role
        self.proxy = proxy
        self.spool = Path(environment["MASKLINE_SPOOL_DIR"]) if "MASKLINE_SPOOL_DIR" in environment else None
        self._environment = environment
        self._log = directory / f"{self.name}.log"
        self._note = note
        self._process: asyncio.subprocess.Process | None = None
        self._asked = ""
        self._watch: asyncio.Task[None] | None = None
        self._reading = threading.Event()
        """Set while somebody reads what the process logs."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the process and wait until it says that it is ready. Raises TimeoutError."""
        self._asked = ""
        offset = self._log.stat().st_size if self._log.exists() else 0
        reader, writer = os.pipe()
        self._reading.set()
        # Not a daemon, and not waited for: it ends with the last process that holds the pipe.
        threading.Thread(target=self._read_log, args=(reader,)).start()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"maskline.{self.role}",
                env=self._environment,
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
            )
        finally:
            os.close(writer)
        self._watch = asyncio.create_task(self._until_exit(self._process))
        async with asyncio.timeout(START_S):
            while _STARTED[self.role] not in self._logged(offset):
                if self._process.returncode is not None:
                    raise RuntimeError(f"{self.name} ended at its start: {self._logged(offset)}")
                await asyncio.sleep(POLL_S)

    def _read_log(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as pipe, self._log.open("ab", buffering=0) as log:
            while self._reading.wait() and (lines := pipe.read(1 << 16)):
                log.write(lines)

    def _logged(self, offset: int) -> str:
        with self._log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    async def _until_exit(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self._note(Exit(self.name, process.pid, code, self._asked, time.monotonic()))

    def send(self, signum: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)

    async def stopped(self) -> None:
        """SIGSTOP, and wait until the kernel has stopped it."""
        self.send(signal.SIGSTOP)
        with contextlib.suppress(OSError):
            while self._state() not in "TZ":
                await asyncio.sleep(0.001)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    # Faults

    @contextlib.contextmanager
    def few_descriptors(self, spare: int) -> Iterator[None]:
        """The process may open so many more descriptors than it has, and no others."""
        pid, before = self.pid, (0, 0)
        with contextlib.suppress(OSError):  # it is down
            used = max(int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir()) + 1
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
        try:
            yield
        finally:
            if before != (0, 0) and pid == self.pid:
                with contextlib.suppress(OSError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    @contextlib.contextmanager
    def log_unread(self) -> Iterator[None]:
        """Nobody reads what the process logs, and its pipe is full."""
        self._reading.clear()
        with contextlib.suppress(OSError):  # it is down
            # Opened anew: what is set on it is not set on the process's own.
            pipe = os.open(f"/proc/{self.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                while os.write(pipe, b"\n" * 4096):
                    pass
            with contextlib.suppress(BlockingIOError):
                while os.write(pipe, b"\n"):
                    pass
            os.close(pipe)
        try:
            yield
        finally:
            self._reading.set()

    async def remove_spool(self, way: int) -> Path:
        """Remove the directory (0), and make it anew (1), or the files in it (2); a copy of what was in it then."""
        assert self.spool is not None
        copy = self.spool.with_name(f"{self.spool.name}-away-{time.monotonic_ns()}")
        await (
            self.stopped()
        )  # what it has answered is in the copy; what it answers later may not rely on these files
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.copytree(self.spool, copy)
                for file in self.spool.iterdir():
                    file.unlink()
                if way != 2:
                    self.spool.rmdir()
                if way == 1:
                    self.spool.mkdir(mode=0o700)
        finally:
            self.send(signal.SIGCONT)
        return copy

    def put_spool_back(self, copy: Path) -> None:
        """Put journals that were removed beside those made since, as slots that nobody holds: the process is down."""
        assert self.spool is not None
        self.spool.mkdir(mode=0o700, exist_ok=True)
        taken = {int(match[1]) for path in self.spool.iterdir() if (match := _SPOOL_FILE.match(path.name))}
        slots: dict[str, int] = {}
        for file in sorted(copy.iterdir()) if copy.exists() else ():
            if match := _SPOOL_FILE.match(file.name):
                slot = slots.setdefault(
                    match[1], next(number for number in counting() if number not in taken)
                )
                taken.add(slot)
                file.rename(self.spool / f"spool-{NAMESPACE}-{slot}.db{match[2]}")

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self._asked = "kill"
        self.send(signal.SIGKILL)
        await self._gone()

    async def terminate(self) -> None:
        """SIGTERM; what does not end in time is killed, which shows as its exit code."""
        self._asked = "term"
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._gone()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self._gone()

    async def _gone(self) -> None:
        if self._watch is not None:
            await asyncio.shield(self._watch)


class Stage:
    """`servers`, `ingests`, `workers`; made by `open_stage`."""

    def __init__(self, servers: Replicated, keys: Keys, partitions: int, common: dict[str, str]) -> None:
        self._common = common
        self.servers = servers
        self.keys = keys
        self.partitions = partitions
        self.ingests: list[Node] = []
        self.workers: list[Node] = []
        self.urls: list[tuple[str, int]] = []
        self.client = self._look()

    @property
    def server(self) -> RedisServer:
        """The one in use."""
        return self.servers.primary

    def operator_environment(self) -> dict[str, str]:
        """The environment of an operator's command, which goes to the server in use."""
        return self._common | {"MASKLINE_REDIS_URL": self.server.url}

    def follow_primary(self) -> None:
        """The servers have changed places: the address of each process leads to the one that is in use now."""
        self.client = self._look()
        for node in self.nodes:
            node.proxy.server_port = self.server.port

    def close(self) -> None:
        self.client.close()

    def _look(self) -> redis.Redis:
        return redis.Redis(
            port=self.server.port,
            socket_timeout=INSPECT_TIMEOUT_S,
            socket_connect_timeout=INSPECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def nodes(self) -> list[Node]:
        return [*self.ingests, *self.workers]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def leases(self) -> dict[int, tuple[int, str]]:
        """Fencing token and worker of every lease, by partition. Blocks; raises redis.RedisError."""
        values: Any = self.client.mget([self.keys.lease(number) for number in range(self.partitions)])
        split = {number: value.decode().split(" ", 1) for number, value in enumerate(values) if value}
        return {number: (int(token), worker) for number, (token, worker) in split.items()}

    def answers(self) -> bool:
        """Whether Valkey answers now. Blocks."""
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def left(self) -> dict[int, tuple[int | None, int | None]]:
        """By partition: pending and unread entries of the group. Blocks; raises redis.RedisError."""
        found: dict[int, tuple[int | None, int | None]] = {}
        for number in range(self.partitions):
            try:
                groups: Any = self.client.xinfo_groups(self.keys.callbacks(number))
            except redis.ResponseError:
                groups = []
            found[number] = next(
                ((it["pending"], it["lag"]) for it in groups if it["name"] == self.keys.group.encode()),
                (None, None),
            )
        return found

    def due_items(self) -> int:
        """Events that were set aside and wait for no operator. Blocks; raises redis.RedisError."""
        count = 0
        for number in range(self.partitions):
            counts: Any = self.client.hgetall(self.keys.retry_counts(number))
            for field, value in counts.items():
                count += int(value) * (1 if field.startswith(b"waiting ") else -1)
        return count

    def retry_queues(self, handlers: Iterable[str]) -> Iterator[tuple[str, bool, list[QueueItem]]]:
        """The retry queues of these handlers: handler, whether it is parked, items. Blocks; raises redis.RedisError."""
        for number in range(self.partitions):
            for handler in handlers:
                for key, parked in (
                    (self.keys.retry_due(number, handler), False),
                    (self.keys.retry_parked(number, handler), True),
                ):
                    sessions: Any = self.client.zrange(key, 0, -1)
                    for session in sessions:
                        items: Any = self.client.lrange(
                            self.keys.retry_queue(number, handler, session.decode()), 0, -1
                        )
                        yield handler, parked, [decode_item(item) for item in items]


def tag_of(callback: bytes) -> str:
    """The tag of a callback, as a stream or a dead letter has it."""
    return str(decode_event(decode_callback(callback)).event.extra.get(TAG, ""))


@contextlib.asynccontextmanager
async def open_stage(
    directory: Path,
    note: Callable[[Fact], None],
    *,
    workers: int,
    ingests: int,
    partitions: int,
    lease_s: float,
    handlers: Mapping[str, str],
) -> AsyncIterator[Stage]:
    """Start everything in `directory`; stop everything in the end. `handlers`: their part of the environment."""
    # By the second, the default, a write may wait while another is synced, and a kill then takes what was answered.
    options = ("--appendfsync", "always")
    servers = Replicated(directory / "valkey", options=options)
    servers.primary.port, servers.replica.port = fixed_port(), fixed_port()
    common = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")} | {
        "MASKLINE_NAMESPACE": NAMESPACE,
        "MASKLINE_PARTITIONS": str(partitions),
        "MASKLINE_LEASE_TTL_MS": str(round(lease_s * 1000)),
        "MASKLINE_GAP_TIMEOUT_MS": str(GAP_TIMEOUT_MS),
        "MASKLINE_RETENTION_S": str(RETENTION_S),
        "MASKLINE_LOG_FORMAT": "json",
        "MASKLINE_ADMIN_PORT": "0",
    }
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(servers.kill)
        await asyncio.to_thread(servers.start)
        stage = Stage(servers, Keys(NAMESPACE, "workers"), partitions, common)
        stack.callback(stage.close)

        async def add(role: str, index: int, environment: dict[str, str]) -> Node:
            proxy = Proxy(stage.server.port)
            await proxy.start()
            stack.push_async_callback(proxy.stop)
            url = {"MASKLINE_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
            node = Node(role, index, common | url | environment, proxy, directory, note)
            stack.push_async_callback(node.kill)
            return node

        for index in range(ingests):
            port = fixed_port()
            settings = {
                "MASKLINE_HOST": "127.0.0.1",
                "MASKLINE_PORT": str(port),
                "MASKLINE_AUTH_TOKENS": f"{AUTH_ID}:{AUTH_TOKEN}",
                "MASKLINE_SPOOL_DIR": str(directory / f"spool-{index}"),
                "MASKLINE_DURABILITY": "replicas:1",
            }
            stage.ingests.append(await add("ingest", index, settings))
            stage.urls.append((stage.ingests[-1].name, port))
        for index in range(workers):
            settings = {
                "MASKLINE_HANDLERS": str(Path(__file__).with_name("chaos_handlers.py")),
            } | handlers
            stage.workers.append(await add("worker", index, settings))
        await asyncio.gather(*(node.start() for node in stage.nodes))
        yield stage
