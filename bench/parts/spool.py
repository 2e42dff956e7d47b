"""Measures the spool while Redis is away, compared with a SQLite that commits each callback.

`http` is the whole of ingest; `journal` is the spool alone, as an HTTP server in front of it does not reach its limit.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bench.load import run_load
from bench.machine import HOME, WAIT_TIMEOUT_S, BenchError, cores, free_port, process, wait_until_listening
from bench.paired import Key
from bench.parts.ingest import check_answers, environment, figures, requests_file
from bench.plan import CPU, CPU_RATIO, RATE, RATIO, Column, Options, Plan, Slice

EACH: Final = "a commit each"
MASKLINE: Final = "maskline"
SERVERS: Final = {EACH: "bench.ingest.commit_each", MASKLINE: "maskline.ingest"}
JOURNALS: Final = {EACH: "bench.spool.commit_each", MASKLINE: "bench.spool.maskline_spool"}


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    slices = [Slice(Key("http", name), partial(http, name, options)) for name in SERVERS]
    slices += [Slice(Key("journal", name), partial(journal, name, options)) for name in JOURNALS]
    bases = {case: Key(case, EACH) for case in ("http", "journal")}
    columns = [RATIO, CPU_RATIO, RATE, CPU, Column("p50_us", "p50 µs"), Column("p99_us", "p99 µs")]
    return Plan(
        "spool",
        "Spool, 64 clients, Redis away. Base: SQLite, WAL and FULL, a commit each",
        slices,
        bases,
        columns,
    )


def http(name: str, options: Options) -> dict[str, float]:
    """Requests that are answered 200 once they are on the disk."""
    found = cores()
    with _directory() as directory:
        port = free_port()
        environ = environment(port, f"redis://127.0.0.1:{free_port()}/0", Path(directory))
        environ["BENCH_SQLITE"] = f"{directory}/each.db"
        log = HOME / "logs" / f"spool-{name.replace(' ', '-')}.log"
        with process(
            [sys.executable, "-m", SERVERS[name]], log, core=found.server, environment=environ
        ) as server:
            wait_until_listening(port, server)
            check_answers(port, verifies=name == MASKLINE)
            load = run_load(
                port,
                requests_file(),
                core=found.rest,
                warm_s=options.warm_s,
                slice_s=options.slice_s,
                pids=server.pids(),
            )
            if not any(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()):
                raise BenchError("nothing was written")
    return figures(load)


def journal(name: str, options: Options) -> dict[str, float]:
    """Callbacks spooled for 64 clients in the same process."""
    with _directory() as directory:
        log = HOME / "logs" / f"journal-{name.replace(' ', '-')}.log"
        environ = {"BENCH_DIRECTORY": directory, "BENCH_SLICE_S": str(options.slice_s)}
        with process(
            [sys.executable, "-m", JOURNALS[name]], log, core=cores().server, environment=environ
        ) as clients:
            clients.wait_until_ended(WAIT_TIMEOUT_S + options.slice_s)
        result_line = next(line for line in log.read_text().splitlines() if line.startswith('{"per_s"'))
        return msgspec.json.decode(result_line, type=dict[str, float])


def _directory() -> "tempfile.TemporaryDirectory[str]":
    (HOME / "data").mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="spool-", dir=HOME / "data")
