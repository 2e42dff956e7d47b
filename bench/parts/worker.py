"""Measures the worker: events from the stream to a handler. Each consumer is alone on its core, Valkey on the other.

A consumer is started, and stopped by SIGSTOP when it is ready, while the backlog is added to its streams. The
measurement runs from SIGCONT until its handler has had the last event, so nothing is read beforehand.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count
from typing import Final, NamedTuple

import redis

from bench import data
from bench.backlog import GROUP, KEYS, NAMESPACE, Feeder, one_stream, partition_stream, write_events
from bench.machine import HOME, WAIT_TIMEOUT_S, BenchError, Process, Valkey, cores, process, valkey
from bench.paired import Key
from bench.plan import CPU, CPU_RATIO, RATE, RATIO, SERVER, Options, Plan, Slice
from bench.prepare import PEERS, PEERS_PYTHON
from bench.tallies import HandledCounts, listen_for_handled
from bench.worker.tally import SLOW_PREFIX

PARTITIONS: Final = 64
"""The default of MASKLINE_PARTITIONS."""
LIGHT_ENTRIES: Final = 2
"""In every partition, a round of light load."""
SLOW_EVENTS: Final = 20


class Consumer(NamedTuple):
    """A variant: how it is started, and where it reads events."""

    name: str
    work: tuple[str, ...]
    load: tuple[str, ...] = ()
    """The command that loads its backlog; empty if it reads what ingest writes."""
    streams: str = ""
    """Its streams: `partitions`, `one`, or the key of its own stream."""
    environment: tuple[tuple[str, str], ...] = ()


_PEER: Final = (str(PEERS_PYTHON), "-m")
_FASTSTREAM_LOAD: Final = (*_PEER, "bench.worker.with_faststream", "load")

HANDWRITTEN: Final = Consumer(
    "hand-written", (sys.executable, "-m", "bench.worker.handwritten"), streams="one"
)
HANDWRITTEN_64: Final = HANDWRITTEN._replace(name="hand-written, 64 streams", streams="partitions")
MASKLINE: Final = Consumer("maskline", (sys.executable, "-m", "maskline.worker"), streams="partitions")
FASTSTREAM: Final = Consumer(
    "FastStream", (*_PEER, "bench.worker.with_faststream", "work"), _FASTSTREAM_LOAD, "callbacks"
)
FASTSTREAM_BATCH: Final = Consumer(
    "FastStream, batches", (*_PEER, "bench.worker.with_faststream_batch"), _FASTSTREAM_LOAD, "callbacks"
)
TASKIQ: Final = Consumer(
    "taskiq-redis",
    (
        str(PEERS / "bin" / "taskiq"),
        "worker",
        "bench.worker.with_taskiq:broker",
        "--workers",
        "1",
        "--log-level",
        "WARNING",
        "--max-async-tasks",
        "20",
        "--max-prefetch",
        "20",
        "--no-parse",
    ),
    (*_PEER, "bench.worker.with_taskiq"),
    "callbacks",
)
STREAQ: Final = Consumer(
    "streaq",
    (str(PEERS / "bin" / "streaq"), "run", "bench.worker.with_streaq:worker"),
    (*_PEER, "bench.worker.with_streaq"),
    "streaq:default:queues:normal",
)
QUEUES: Final = (FASTSTREAM, FASTSTREAM_BATCH, TASKIQ, STREAQ)
WAITING_QUEUES: Final = (
    FASTSTREAM._replace(
        environment=(("BENCH_WORKERS", "32"),)
    ),  # one is its fastest only where nothing waits
    *QUEUES[1:],
)


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    few = options.events // 10
    several = (HANDWRITTEN, HANDWRITTEN_64, MASKLINE)
    slices = [Slice(Key("backlog", one.name), partial(backlog, one, options.events)) for one in several]
    slices += [Slice(Key("backlog", one.name), partial(backlog, one, few)) for one in QUEUES]
    # Light load is in 64 streams, so the loop that reads 64 is its base.
    lightly = {"hand-written": HANDWRITTEN_64, "hand-written, one stream": HANDWRITTEN, "maskline": MASKLINE}
    slices += [
        Slice(Key("light", name), partial(light, one, options.slice_s)) for name, one in lightly.items()
    ]
    waiting = ((HANDWRITTEN, few // 5), (MASKLINE, few * 2), *((one, few // 2) for one in WAITING_QUEUES))
    slices += [
        Slice(Key("1 ms in each handler", one.name), partial(backlog, one, events, pause="1ms"))
        for one, events in waiting
    ]
    slices += [
        Slice(Key("one slow session", one.name), partial(slow_session, one, few * 2))
        for one in (HANDWRITTEN, MASKLINE)
    ]
    bases = {one.key.case: Key(one.key.case, HANDWRITTEN.name) for one in slices}
    title = f"Worker, {options.events:,} events. Base: a loop written by hand, beside it in the same round"
    return Plan("worker", title, slices, bases, [RATIO, CPU_RATIO, RATE, CPU, SERVER])


def backlog(consumer: Consumer, events: int, *, pause: str = "") -> dict[str, float]:
    """Handle a backlog of numbered events, a fifth of them out of order."""
    sessions = -(-events // data.SESSION_EVENTS)
    return drain(
        consumer, partial(data.session_events, sessions), sessions * data.SESSION_EVENTS, pause=pause
    )


def slow_session(consumer: Consumer, events: int) -> dict[str, float]:
    """The same beside one session whose handlers take 50 ms; its events do not count."""
    fast = list(data.session_events(events // data.SESSION_EVENTS))
    step = len(fast) // SLOW_EVENTS
    slow = [data.numbered(0, number, f"{SLOW_PREFIX}-session") for number in range(1, SLOW_EVENTS + 1)]
    mixed = [[slow[number], *fast[number * step : (number + 1) * step]] for number in range(SLOW_EVENTS)]
    return drain(consumer, lambda: chain(*mixed), len(fast) // step * step, pause="slow", drained=False)


def drain(
    consumer: Consumer,
    events: Callable[[], Iterable[data.NumberedEvent]],
    total: int,
    *,
    pause: str = "",
    drained: bool = True,
) -> dict[str, float]:
    """Handle a backlog of `total` events, of whole sessions. `drained`: wait until all are committed."""
    # Reports on the way: a consumer that takes longer than STALL_S for all of them is slow, and has not stalled.
    every = total // data.SESSION_EVENTS
    with (
        listen_for_handled() as handled_counts,
        running(consumer, handled_counts.environment(every, pause)) as (worker, store),
    ):
        worker.pause()
        load_backlog(consumer, store, events, total)
        values = measured(handled_counts, worker, store, total)
        if drained and not consumer.load:
            wait_until_committed(consumer, store, worker)
    return values


def measured(
    handled_counts: HandledCounts, worker: Process, store: Valkey, total: int, before: int = 0
) -> dict[str, float]:
    """Resume a consumer until `before + total` events are handled; the figures of the last `total`."""
    used_s, server_s, start_ns = worker.cpu_s(), store.process.cpu_s(), time.monotonic_ns()
    worker.resume()
    seconds = (handled_counts.wait_for(before + total, worker) - start_ns) / 1e9
    used_s, server_s = worker.cpu_s() - used_s, store.process.cpu_s() - server_s
    return {
        "per_s": total / seconds,
        "seconds": seconds,
        "cpu_us": used_s / total * 1e6,
        "server_us": server_s / total * 1e6,
    }


def light(consumer: Consumer, slice_s: float) -> dict[str, float]:
    """Add two entries to each partition at a time, the next ones once these are handled."""
    entries = LIGHT_ENTRIES * PARTITIONS
    stream_of = stream_function(consumer)
    with (
        listen_for_handled() as handled_counts,
        running(consumer, handled_counts.environment(entries)) as (worker, store),
        Feeder(store) as feeder,
    ):
        done = 0
        start_ns = end_ns = time.monotonic_ns()
        used_s = worker.cpu_s()
        for entry_round in light_rounds():
            feeder.add_at_once(entry_round, stream_of)
            done += entries
            end_ns = handled_counts.wait_for(done, worker)
            if end_ns - start_ns > slice_s * 1e9:
                break
        used_s = worker.cpu_s() - used_s
    return {"per_s": done / (end_ns - start_ns) * 1e9, "cpu_us": used_s / done * 1e6}


def light_rounds() -> Iterator[list[data.NumberedEvent]]:
    """Rounds of LIGHT_ENTRIES events for each partition, all of different sessions and in order."""
    stream_of = partition_stream(PARTITIONS)
    indexes = count()
    while True:
        found: dict[str, list[tuple[int, str]]] = {}
        while sum(map(len, found.values())) < LIGHT_ENTRIES * PARTITIONS:
            index = next(indexes)
            name = data.session_uuid(index)
            sessions = found.setdefault(stream_of(name), [])
            if len(sessions) < LIGHT_ENTRIES:
                sessions.append((index, name))
        chosen = list(chain(*found.values()))
        for number in range(1, data.SESSION_EVENTS + 1):
            yield [data.numbered(index, number, name) for index, name in chosen]


@contextlib.contextmanager
def running(
    consumer: Consumer, environment: dict[str, str], *, partitions: int = PARTITIONS
) -> Iterator[tuple[Process, Valkey]]:
    """Start a consumer with a fresh Valkey, and wait until it is ready to read."""
    found = cores()
    log = HOME / "logs" / f"worker-{consumer.name.replace(' ', '-').replace(',', '')}.log"
    with valkey(core=found.rest) as store:
        environ = settings(store, partitions) | environment | dict(consumer.environment)
        environ["BENCH_STREAMS"] = ",".join(streams_of(consumer, partitions))
        with process(consumer.work, log, core=found.server, environment=environ) as worker:
            wait_until_ready(consumer, store, worker, partitions)
            yield worker, store


def settings(store: Valkey, partitions: int) -> dict[str, str]:
    """The environment of all consumers. maskline has its production defaults, but for these settings."""
    return {
        "BENCH_REDIS_URL": store.url,
        "MASKLINE_REDIS_URL": store.url,
        "MASKLINE_NAMESPACE": NAMESPACE,
        "MASKLINE_GROUP": GROUP,
        "MASKLINE_PARTITIONS": str(partitions),
        "MASKLINE_HANDLERS": "bench.worker.maskline_handlers",
        "MASKLINE_ADMIN_PORT": "0",
        "MASKLINE_LOG_FORMAT": "json",
    }


def load_backlog(
    consumer: Consumer, store: Valkey, events: Callable[[], Iterable[data.NumberedEvent]], total: int
) -> None:
    """Load the backlog into the consumer's streams."""
    if not consumer.load:
        with Feeder(store) as feeder:
            feeder.add(events(), stream_function(consumer))
        return
    path = write_events(HOME / "data" / f"events-{total}.jsonl", events())
    environment = {"BENCH_REDIS_URL": store.url, "BENCH_EVENTS_FILE": str(path), "BENCH_EVENTS": str(total)}
    with process(
        consumer.load, HOME / "logs" / "load.log", core=cores().rest, environment=environment
    ) as loader:
        loader.wait_until_ended(WAIT_TIMEOUT_S)


def stream_function(consumer: Consumer, partitions: int = PARTITIONS) -> Callable[[str], str]:
    """From a session to the stream in which the consumer reads its events."""
    return one_stream if consumer.streams == "one" else partition_stream(partitions)


def streams_of(consumer: Consumer, partitions: int) -> list[str]:
    """The keys that the consumer reads."""
    match consumer.streams:
        case "one":
            return [one_stream("")]
        case "partitions":
            return [KEYS.callbacks(number) for number in range(partitions)]
        case own:
            return [own]


def wait_until_ready(consumer: Consumer, store: Valkey, worker: Process, partitions: int) -> None:
    """Wait until all streams of a consumer have its group, and maskline owns all partitions."""
    streams = streams_of(consumer, partitions)
    leases = [KEYS.lease(number) for number in range(partitions)] if consumer.name == MASKLINE.name else []

    def ready() -> bool:
        with contextlib.suppress(redis.ResponseError):
            groups = store.client.pipeline(transaction=False)
            for name in streams:
                groups.xinfo_groups(name)
            return all(groups.execute()) and len(leases) == (store.client.exists(*leases) if leases else 0)
        return False

    _wait(ready, worker, "to be ready")


def wait_until_committed(
    consumer: Consumer, store: Valkey, worker: Process, partitions: int = PARTITIONS
) -> None:
    """Wait until the group has nothing pending, so that a consumer counts only if it commits what it handles."""

    def committed() -> bool:
        groups = store.client.pipeline(transaction=False)
        for name in streams_of(consumer, partitions):
            groups.xinfo_groups(name)
        return all(group["pending"] == 0 and not group["lag"] for one in groups.execute() for group in one)

    _wait(committed, worker, "to commit what it handled")


def _wait(condition: Callable[[], bool], worker: Process, what: str) -> None:
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while not condition():
        worker.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{worker.log.name}: waited {WAIT_TIMEOUT_S:g} s for it {what}")
        time.sleep(0.02)
