"""Real worker processes, callbacks put into their streams, and what their handlers wrote down."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import redis
from servers import RedisServer, wait_until

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter

HANDLERS = str(Path(__file__).with_name("recording_handlers.py"))
LEASE_TTL_MS = 1_000
GAP_TIMEOUT_MS = 600_000
"""Where a test does not say otherwise: a number that comes after a failover must not be late on a loaded machine."""
PATIENCE_S = 60.0
"""For whatever is sure to come: a loaded machine must not fail a test."""


class Call(NamedTuple):
    """One call of a handler, as recording_handlers writes it."""

    pid: int
    handler: str
    outcome: str
    event_name: str
    session: str
    number: int | None
    order: str
    missing: list[int]
    run: int
    attempt: int
    key: str
    token: int
    entry_id: str
    start: float
    end: float
    open: bool


class WorkerProcess:
    """`python -m maskline.worker`, or a program that does the same, its stderr in a file."""

    def __init__(
        self, environment: Mapping[str, str], log: Path, arguments: Iterable[str] = (), program: str = ""
    ) -> None:
        self.log_file = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *(("-c", program) if program else ("-m", "maskline.worker")), *arguments],
                env=environment, stderr=stderr, stdout=stderr, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def logged(self, event: str) -> dict[str, Any] | None:
        """The first log line of an event, once it is there."""
        for line in self.log.splitlines():
            if line.startswith("{") and (entry := json.loads(line))["event"] == event:
                return dict(entry)
        return None

    def until_started(self) -> "WorkerProcess":
        def started() -> Any:
            assert self.process.poll() is None, self.log
            return self.logged("worker started")

        wait_until(started, within_s=PATIENCE_S, what="the worker to start")
        return self

    @property
    def worker_id(self) -> str:
        started = self.logged("worker started")
        assert started is not None
        return str(started["worker"])

    def metric(self, name: str, **labels: str) -> float:
        """A figure of the worker's /metrics; 0 where it has not been counted yet."""
        started = self.logged("worker started")
        assert started is not None
        with urllib.request.urlopen(f"{started['admin']}/metrics", timeout=60) as response:  # noqa: S310 our own
            text = response.read().decode()
        shown = "{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else ""
        found = re.search(rf"^maskline_worker_{name}{re.escape(shown)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def pause(self) -> None:
        """SIGSTOP, and wait until the kernel has stopped it."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", what="the process to be stopped")

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Fleet:
    """A namespace on a server, with worker processes and what is in its streams."""

    def __init__(self, server: RedisServer, namespace: str, directory: Path, *, partitions: int = 8) -> None:
        self.server = server
        self.namespace = namespace
        self.partitions = partitions
        self.directory = directory
        self.keys = Keys(namespace, "workers")
        self.client = server.client()
        self.record_file = directory / "record.jsonl"
        self.workers: list[WorkerProcess] = []
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    # Workers

    def environment(self, **settings: Any) -> dict[str, str]:
        """Settings by field name; upper-case names are taken as they are, None leaves one out."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
        values = {
            "redis_url": self.server.url, "namespace": self.namespace, "partitions": self.partitions,
            "handlers": HANDLERS, "admin_port": 0, "lease_ttl_ms": LEASE_TTL_MS, "log_format": "json",
            "gap_timeout_ms": GAP_TIMEOUT_MS, "RECORD_FILE": self.record_file,
        } | settings  # fmt: skip
        return inherited | {
            name if name.isupper() else f"MASKLINE_{name.upper()}": str(value)
            for name, value in values.items()
            if value is not None
        }

    def launch(self, *arguments: str, program: str = "", **settings: Any) -> WorkerProcess:
        """Start a worker; it may take a while until it is ready."""
        log = self.directory / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess(self.environment(**settings), log, arguments, program))
        return self.workers[-1]

    def start(self, *, program: str = "", **settings: Any) -> WorkerProcess:
        return self.launch(program=program, **settings).until_started()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.client.close()

    # Callbacks

    def put(self, session: str, number: int | None, *, entry_id: str = "*", **more: str) -> str:
        """Add one callback to its stream; the entry's ID."""
        fields = {CALLBACK_FIELD: callback(session, number, **more)}
        return str(self.client.xadd(self.stream(session), fields, id=entry_id).decode())

    def put_all(self, events: Iterable[tuple[str, int]]) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for session, number in events:
            pipeline.xadd(self.stream(session), {CALLBACK_FIELD: callback(session, number)})
        pipeline.execute()

    def stream(self, session: str) -> str:
        return self.keys.callbacks(partition_of(session, self.partitions))

    # What is in Redis

    def leases(self) -> dict[int, tuple[int, str]]:
        """Fencing token and worker of every lease, by partition."""
        values = self.client.mget([self.keys.lease(number) for number in range(self.partitions)])
        split = {number: value.decode().split(" ", 1) for number, value in enumerate(values) if value}
        return {number: (int(token), worker) for number, (token, worker) in split.items()}

    def shares(self) -> list[int]:
        """How many partitions each owner has, fewest first."""
        counts: defaultdict[str, int] = defaultdict(int)
        for _, worker in self.leases().values():
            counts[worker] += 1
        return sorted(counts.values())

    def balanced(self, workers: int) -> bool:
        shares = self.shares()
        return len(shares) == workers and sum(shares) == self.partitions and shares[-1] - shares[0] <= 1

    def until_balanced(self, workers: int) -> None:
        wait_until(lambda: self.balanced(workers), within_s=PATIENCE_S, what=f"{workers} workers to balance")

    def group(self, partition: int) -> dict[str, Any] | None:
        try:
            groups = self.client.xinfo_groups(self.keys.callbacks(partition))
        except redis.ResponseError:
            return None
        return next((group for group in groups if group["name"] == b"workers"), None)

    def drained(self) -> bool:
        """Everything in the streams is read and done."""
        groups = [self.group(partition) for partition in range(self.partitions)]
        return all(group and group["lag"] == 0 and group["pending"] == 0 for group in groups)

    def until_drained(self) -> None:
        wait_until(self.drained, within_s=PATIENCE_S, what="the streams to be drained")

    def uncommitted(self, partition: int) -> Callable[[str], bool]:
        """Tells of an entry ID whether it was not done as of now, by what the group knows."""
        group = self.group(partition)
        if group is None:
            return lambda _: True
        key, cursor = self.keys.callbacks(partition), sort_key(group["last-delivered-id"].decode())
        pending = {
            entry["message_id"].decode()
            for entry in self.client.xpending_range(key, "workers", "-", "+", 100_000)
        }
        return lambda entry_id: entry_id in pending or sort_key(entry_id) > cursor

    def dead_letters(self) -> list[DeadLetter]:
        return [
            decode_dead_letter(fields[b"d"])
            for partition in range(self.partitions)
            for _, fields in self.client.xrange(self.keys.dead(partition))
        ]

    # What the handlers wrote down

    def lines(self) -> list[dict[str, Any]]:
        if self.record_file.exists():
            with self.record_file.open() as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith("\n"):
                        break
                    self._read += len(line.encode())
                    self._lines.append(json.loads(line))
        return self._lines

    def calls(self, session: str = "") -> list[Call]:
        """Calls of handlers, by when they started."""
        found = [
            Call(**{name: line[name] for name in Call._fields})
            for line in self.lines()
            if line["what"] == "call" and line["session"].startswith(session)
        ]
        return sorted(found, key=lambda call: call.start)

    def until_calls(self, count: int, session: str = "") -> list[Call]:
        wait_until(
            lambda: len(self.calls(session)) >= count,
            within_s=PATIENCE_S, what=f"{count} calls",
        )  # fmt: skip
        return self.calls(session)


@contextlib.contextmanager
def fleet(server: RedisServer, namespace: str, directory: Path, *, partitions: int = 8) -> Iterator[Fleet]:
    it = Fleet(server, namespace, directory, partitions=partitions)
    try:
        yield it
    finally:
        it.close()


def callback(session: str, number: int | None, **more: str) -> bytes:
    """A callback as ingest stores it."""
    pairs = {
        "EventName": "SessionFirstPartyRinging",
        "SessionUUID": session,
        "From": "+14155550123",
        "To": "+447700900123",
        **more,
    }
    if number is not None:
        pairs["SequenceNumber"] = str(number)
    now_ms = time.time_ns() // 1_000_000
    return encode_callback(RawCallback("POST", b"", FORM_TYPE, urlencode(pairs).encode(), now_ms, ""))


def load(
    sessions: int, events: int, *, name: str = "s", window: int = 3, seed: int = 1
) -> list[tuple[str, int]]:
    """Numbered events of many sessions, interleaved, each displaced by a few places within its session."""
    rng = random.Random(seed)
    placed = [
        (number + rng.uniform(0, window), rng.random(), f"{name}{session}", number)
        for session in range(sessions)
        for number in range(1, events + 1)
    ]
    return [(session, number) for _, _, session, number in sorted(placed)]


def sort_key(entry_id: str) -> tuple[int, int]:
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)


def by_session(calls: Iterable[Call]) -> dict[str, list[Call]]:
    sessions: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        sessions[call.session].append(call)
    return dict(sessions)


def assert_complete_and_in_order(calls: list[Call], events: Iterable[tuple[str, int]]) -> None:
    """Every event was handled; each session's one at a time, in order; a repeat under the same key and no other."""
    expected: defaultdict[str, set[int]] = defaultdict(set)
    for session, number in events:
        expected[session].add(number)
    done = by_session(call for call in calls if call.outcome == "done")
    assert done.keys() == expected.keys()
    for session, numbers in expected.items():
        of_number: dict[int | None, str] = {}
        first: list[int | None] = []
        for call in done[session]:
            if of_number.setdefault(call.number, call.key) != call.key:
                raise AssertionError(f"{session} {call.number}: another key at the repeat")
            if call.number not in first:
                first.append(call.number)
        orders = [(call.number, call.order) for call in done[session]]
        assert first == sorted(numbers), f"{session}: {orders}"
        for token in {call.token for call in done[session]}:
            owners = [call.number for call in done[session] if call.token == token]
            assert owners == sorted(owners, key=int), f"{session}: out of order under one owner"
            assert len(owners) == len(set(owners)), f"{session}: twice under one owner"
    for session, ones in by_session(calls).items():
        for before, after in itertools.pairwise(ones):
            assert before.end <= after.start, f"{session}: {before.number} and {after.number} at once"


def assert_tokens_grow(calls: list[Call], partitions: int) -> None:
    """In every partition a later call never bears a smaller fencing token."""
    latest: dict[int, int] = {}
    for call in calls:
        partition = partition_of(call.session, partitions)
        assert call.token >= latest.get(partition, 0)
        latest[partition] = call.token
