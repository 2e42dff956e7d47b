"""The worker: events from the stream to a handler. Every consumer alone on its core, Valkey on the other.

A consumer is started and ready, then stands still (SIGSTOP) while the backlog is put into its streams. What is
measured runs from when it may go on until its handler has had the last event: nothing is read beforehand.
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
from bench.machine import HOME, PATIENCE_S, BenchError, Process, Valkey, cores, process, valkey
from bench.paired import Key
from bench.plan import CPU, CPU_RATIO, RATE, RATIO, SERVER, Options, Plan, Slice
from bench.prepare import PEERS, PEERS_PYTHON
from bench.tallies import Tallies, tallies
from bench.worker.tally import SLOW_PREFIX

PARTITIONS: Final = 64
"""The default of MASKLINE_PARTITIONS."""
LIGHT_ENTRIES: Final = 2
"""In every partition, a round of light load."""
SLOW_EVENTS: Final = 20


class Consumer(NamedTuple):
    """A variant: how it is started, and where it finds events."""

    name: str
    work: tuple[str, ...]
    load: tuple[str, ...] = ()
    """How its backlog gets into its streams; empty: as ingest writes it."""
    streams: str = ""
    """Where that is: `partitions`, `one`, or the key of its own stream."""
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
        str(PEERS / "bin" / "taskiq"), "worker", "bench.worker.with_taskiq:broker", "--workers", "1",
        "--log-level", "WARNING", "--max-async-tasks", "20", "--max-prefetch", "20", "--no-parse",
    ),
    (*_PEER, "bench.worker.with_taskiq"), "callbacks",
)  # fmt: skip
STREAQ: Final = Consumer(
    "streaq", (str(PEERS / "bin" / "streaq"), "run", "bench.worker.with_streaq:worker"),
    (*_PEER, "bench.worker.with_streaq"), "streaq:default:queues:normal",
)  # fmt: skip
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
    # Light load lies in 64 streams: there the loop that reads them is the base.
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
    consumer: Consumer, events: Callable[[], Iterable[data.Numbered]], total: int, *, pause: str = "",
    drained: bool = True,
) -> dict[str, float]:  # fmt: skip
    """How fast `total` events that lie in the streams are handled."""
    with tallies() as told, running(consumer, told.environment(total, pause)) as (worker, store):
        worker.pause()
        put(consumer, store, events, total)
        values = measured(told, worker, store, total)
        if drained and not consumer.load:
            until_committed(consumer, store, worker)
    return values


def measured(told: Tallies, worker: Process, store: Valkey, total: int, before: int = 0) -> dict[str, float]:
    """Let a consumer go on, until `total` more events than the `before` that it had are handled; what each took."""
    used_s, server_s, start_ns = worker.cpu_s(), store.process.cpu_s(), time.monotonic_ns()
    worker.go_on()
    seconds = (told.until(before + total, worker) - start_ns) / 1e9
    used_s, server_s = worker.cpu_s() - used_s, store.process.cpu_s() - server_s
    return {
        "per_s": total / seconds,
        "seconds": seconds,
        "cpu_us": used_s / total * 1e6,
        "server_us": server_s / total * 1e6,
    }


def light(consumer: Consumer, slice_s: float) -> dict[str, float]:
    """Two entries a partition at a time; the next ones once these were handled."""
    entries = LIGHT_ENTRIES * PARTITIONS
    stream_of = stream_function(consumer)
    with (
        tallies() as told,
        running(consumer, told.environment(entries)) as (worker, store),
        Feeder(store) as feeder,
    ):
        done = 0
        start_ns = end_ns = time.monotonic_ns()
        used_s = worker.cpu_s()
        for entry_round in light_rounds():
            feeder.add_at_once(entry_round, stream_of)
            done += entries
            end_ns = told.until(done, worker)
            if end_ns - start_ns > slice_s * 1e9:
                break
        used_s = worker.cpu_s() - used_s
    return {"per_s": done / (end_ns - start_ns) * 1e9, "cpu_us": used_s / done * 1e6}


def light_rounds() -> Iterator[list[data.Numbered]]:
    """Rounds of events, in each so many of every partition, all of different sessions and in order."""
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
    """The consumer, fresh, ready to read from the streams of a fresh Valkey."""
    found = cores()
    log = HOME / "logs" / f"worker-{consumer.name.replace(' ', '-').replace(',', '')}.log"
    with valkey(core=found.rest) as store:
        told = settings(store, partitions) | environment | dict(consumer.environment)
        told["BENCH_STREAMS"] = ",".join(streams_of(consumer, partitions))
        with process(consumer.work, log, core=found.server, environment=told) as worker:
            until_ready(consumer, store, worker, partitions)
            yield worker, store


def settings(store: Valkey, partitions: int) -> dict[str, str]:
    """What consumers are told; maskline by its settings, in production's defaults otherwise."""
    return {
        "BENCH_REDIS_URL": store.url,
        "MASKLINE_REDIS_URL": store.url, "MASKLINE_NAMESPACE": NAMESPACE, "MASKLINE_GROUP": GROUP,
        "MASKLINE_PARTITIONS": str(partitions), "MASKLINE_HANDLERS": "bench.worker.maskline_handlers",
        "MASKLINE_ADMIN_PORT": "0", "MASKLINE_LOG_FORMAT": "json",
    }  # fmt: skip


def put(consumer: Consumer, store: Valkey, events: Callable[[], Iterable[data.Numbered]], total: int) -> None:
    """Have the backlog in the consumer's streams."""
    if not consumer.load:
        with Feeder(store) as feeder:
            feeder.add(events(), stream_function(consumer))
        return
    path = write_events(HOME / "data" / f"events-{total}.jsonl", events())
    environment = {"BENCH_REDIS_URL": store.url, "BENCH_EVENTS_FILE": str(path), "BENCH_EVENTS": str(total)}
    with process(
        consumer.load, HOME / "logs" / "load.log", core=cores().rest, environment=environment
    ) as loader:
        loader.until_done(PATIENCE_S)


def stream_function(consumer: Consumer, partitions: int = PARTITIONS) -> Callable[[str], str]:
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


def until_ready(consumer: Consumer, store: Valkey, worker: Process, partitions: int) -> None:
    """Wait until all its streams have its group, and until maskline owns all partitions."""
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


def until_committed(consumer: Consumer, store: Valkey, worker: Process, partitions: int = PARTITIONS) -> None:
    """Wait until the group has nothing pending: a consumer that handles and does not commit is not measured."""

    def committed() -> bool:
        groups = store.client.pipeline(transaction=False)
        for name in streams_of(consumer, partitions):
            groups.xinfo_groups(name)
        return all(group["pending"] == 0 and not group["lag"] for one in groups.execute() for group in one)

    _wait(committed, worker, "to commit what it handled")


def _wait(condition: Callable[[], bool], worker: Process, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        worker.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{worker.log.name}: waited {PATIENCE_S:g} s for it {what}")
        time.sleep(0.02)
