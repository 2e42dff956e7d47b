"""Measures ingest: verify, route, XADD, 200. Each server is alone on its core; load and Valkey are on the other."""

import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bench import data
from bench.load import Load, run_load
from bench.machine import (
    HOME,
    BenchError,
    Process,
    Valkey,
    cores,
    free_port,
    process,
    valkey,
    wait_until_listening,
)
from bench.paired import Key
from bench.plan import CPU, CPU_RATIO, RATE, RATIO, Column, Options, Plan, Slice
from bench.prepare import NODE_HOME, PEERS_PYTHON

CAPACITY_S: Final = 1.0
"""How long a server runs at its limit, to find out half of it."""
PARTITIONS: Final = 64
ODD_EVERY: Final = 100
"""In the mixed case: what a proxy's pooled connections carry besides callbacks."""

MIXED_CASE: Final = "64 clients, 1 % odd requests"


class Server(NamedTuple):
    """A variant: how it is started, and what it does."""

    name: str
    argv: tuple[str, ...]
    verifies: bool
    stores: bool
    pinned: bool = True


EMPTY: Final = Server(
    "empty aiohttp", (sys.executable, "-m", "bench.ingest.empty"), verifies=False, stores=False
)
FIRST: Final = Server(
    "aiohttp + redis-py", (sys.executable, "-m", "bench.ingest.first_written"), verifies=True, stores=True
)
FASTAPI: Final = Server(
    "FastAPI + redis-py", (str(PEERS_PYTHON), "-m", "bench.ingest.fastapi_redis"), verifies=False, stores=True
)
FASTIFY: Final = Server(
    "fastify + ioredis",
    (shutil.which("node") or "node", "bench/ingest/fastify.mjs"),
    verifies=True,
    stores=True,
)
MASKLINE: Final = Server("maskline", (sys.executable, "-m", "maskline.ingest"), verifies=True, stores=True)
MASKLINE_TWO: Final = Server(
    "maskline, 2 processes, unpinned",
    (sys.executable, "-m", "maskline.ingest", "--processes", "2"),
    verifies=True,
    stores=True,
    pinned=False,
)


def requests_file() -> Path:
    """The 4,096 distinct requests: events of as many sessions as it takes."""
    return data.write_requests(HOME / "data" / "requests.bin", _events())


def mixed_requests_file() -> Path:
    """The same requests, but 1 % of them GETs, unknown paths and wrong signatures."""
    return data.write_requests(HOME / "data" / "requests-mixed.bin", _events(), odd_every=ODD_EVERY)


def _events() -> list[data.NumberedEvent]:
    sessions = -(-data.REQUESTS // data.SESSION_EVENTS)
    return list(data.session_events(sessions))[: data.REQUESTS]


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    several = [EMPTY, FIRST, FASTAPI, *([FASTIFY] if options.node else []), MASKLINE, MASKLINE_TWO]
    few = [EMPTY, *([FASTIFY] if options.node else []), MASKLINE]
    slices = [Slice(Key("64 clients", server.name), partial(closed, server, options)) for server in several]
    for clients in (8, 256):
        slices += [
            Slice(Key(f"{clients} clients", server.name), partial(closed, server, options, clients=clients))
            for server in few
        ]
    slices += [
        Slice(
            Key(f"AOF {appendfsync}", server.name), partial(closed, server, options, appendfsync=appendfsync)
        )
        for appendfsync in ("off", "always")
        for server in few[1:]
    ]
    slices += [
        Slice(Key("half load", server.name), partial(half_load, server, options))
        for server in (EMPTY, MASKLINE)
    ]
    slices.append(Slice(Key(MIXED_CASE, MASKLINE.name), partial(mixed, MASKLINE, options)))
    cases = {one.key.case for one in slices}
    bases = {case: Key(case, EMPTY.name) for case in cases}
    # The empty server does not write: its slice beside them serves all settings of the AOF.
    bases |= {case: Key("64 clients", EMPTY.name) for case in cases if case.startswith("AOF")}
    bases[MIXED_CASE] = Key("64 clients", MASKLINE.name)
    columns = [RATIO, CPU_RATIO, RATE, CPU, Column("p50_us", "p50 µs"), Column("p99_us", "p99 µs")]
    title = "Ingest. Base: an empty aiohttp web.Server, beside it in the same round. AOF everysec if not said otherwise"
    return Plan("ingest", title, slices, bases, columns)


def closed(
    server: Server, options: Options, *, clients: int = 64, appendfsync: str = "everysec"
) -> dict[str, float]:
    """Throughput with `clients` keep-alive clients."""
    with running(server, appendfsync=appendfsync) as (port, started, store):
        load = run_load(
            port,
            requests_file(),
            core=_load_core(server),
            clients=clients,
            warm_s=options.warm_s,
            slice_s=options.slice_s,
            pids=started.pids(),
        )
        if server.stores:
            check_stored(store, load)
    return figures(load)


def mixed(server: Server, options: Options) -> dict[str, float]:
    """As `closed`, but 1 % of the requests are off the fast path. Figures are of all answers, refusals too."""
    with running(server) as (port, started, store):
        load = run_load(
            port,
            mixed_requests_file(),
            core=_load_core(server),
            warm_s=options.warm_s,
            slice_s=options.slice_s,
            pids=started.pids(),
            may_refuse=True,
        )
        check_stored(store, load)
    return figures(load)


def half_load(server: Server, options: Options) -> dict[str, float]:
    """Latencies at a constant rate of half the server's throughput."""
    with running(server) as (port, started, _):
        core = _load_core(server)
        most = run_load(port, requests_file(), core=core, warm_s=options.warm_s, slice_s=CAPACITY_S)
        load = run_load(
            port,
            requests_file(),
            core=core,
            warm_s=options.warm_s,
            slice_s=options.slice_s,
            rate=most.good / most.seconds / 2,
            pids=started.pids(),
        )
    return figures(load)


def figures(load: Load) -> dict[str, float]:
    """The figures of a slice; a request counts if it was answered 200 or refused."""
    answered = load.good + load.refused
    return {
        "per_s": answered / load.seconds,
        "cpu_us": load.cpu_s / answered * 1e6,
        "p50_us": load.p50_us,
        "p99_us": load.p99_us,
        "p999_us": load.p999_us,
    }


@contextlib.contextmanager
def running(server: Server, *, appendfsync: str = "everysec") -> Iterator[tuple[int, Process, Valkey]]:
    """Start a server with a fresh Valkey; yields its port, its process and the Valkey.

    Checks first that it answers 200 to a good request and, if it verifies, 403 to a wrong signature.
    """
    found = cores()
    with (
        valkey(appendfsync=appendfsync, core=found.rest) as store,
        tempfile.TemporaryDirectory(prefix="spool-", dir=HOME / "data") as spool,
    ):
        port = free_port()
        log = HOME / "logs" / f"ingest-{server.name.replace(' ', '-').replace(',', '')}.log"
        with process(
            server.argv,
            log,
            core=found.server if server.pinned else None,
            environment=environment(port, store.url, Path(spool)),
        ) as started:
            wait_until_listening(port, started)
            check_answers(port, verifies=server.verifies)
            yield port, started, store


def environment(port: int, redis_url: str, spool: Path) -> dict[str, str]:
    """The environment of all servers. maskline has its production defaults, but for these settings."""
    return {
        "BENCH_PORT": str(port),
        "BENCH_REDIS_URL": redis_url,
        "BENCH_URL": data.URL,
        "BENCH_AUTH_TOKEN": data.AUTH_TOKEN,
        "BENCH_NODE_HOME": str(NODE_HOME),
        "NODE_ENV": "production",
        "MASKLINE_HOST": "127.0.0.1",
        "MASKLINE_PORT": str(port),
        "MASKLINE_ADMIN_PORT": "0",
        "MASKLINE_REDIS_URL": redis_url,
        "MASKLINE_AUTH_TOKENS": f"{data.AUTH_ID}:{data.AUTH_TOKEN}",
        "MASKLINE_PARTITIONS": str(PARTITIONS),
        "MASKLINE_LOG_FORMAT": "json",
        "MASKLINE_SPOOL_DIR": str(spool),
    }


def check_answers(port: int, *, verifies: bool) -> None:
    """Raises BenchError if a server does not answer as it must."""
    event = next(iter(data.session_events(1)))
    nonce = "05429567804466091622"
    good, bad = data.request(event.body, nonce), data.request(event.body, nonce, data.sign_v3(b"a=b", nonce))
    for what, sent, expected in (("good", good, 200), ("bad", bad, 403 if verifies else 200)):
        status = status_of(port, sent)
        if status != expected:
            raise BenchError(f"to a {what} signature the answer must be {expected}, not {status}")


def status_of(port: int, sent: bytes) -> int:
    """The HTTP status of the answer to one request."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(sent)
        return int(sock.recv(4096).split(b" ", 2)[1])


def check_stored(store: Valkey, load: Load) -> None:
    """Raises BenchError if fewer callbacks are stored than were answered 200."""
    keys = [key for key in store.client.scan_iter(count=1000) if store.client.type(key) == b"stream"]
    stored = sum(store.client.xlen(key) for key in keys)
    if stored < load.good:
        raise BenchError(f"{load.good} callbacks were answered 200, {stored} are stored")


def _load_core(server: Server) -> int | None:
    return cores().rest if server.pinned else None
