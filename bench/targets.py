"""The targets of the benchmark, as data."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.paired import Key, Sample, Spread, best_of, by_round, ratios, spread


class Target(NamedTuple):
    """A bound on the ratio of a variant to the best of `over`, or on the figure itself if `over` is empty."""

    label: str
    part: str
    key: Key
    over: tuple[Key, ...]
    metric: str
    bound: float
    aim: float
    at_most: bool = False
    """Whether the bound is an upper one."""
    unit: str = "×"


class Outcome(NamedTuple):
    """What was measured for a target."""

    target: Target
    found: Spread

    @property
    def verdict(self) -> str:
        """`aim`, `reached` or `missed`, by the median."""
        target, median = self.target, self.found.median
        for word, value in (("aim", target.aim), ("reached", target.bound)):
            if median <= value if target.at_most else median >= value:
                return word
        return "missed"


TARGETS: Final = (
    Target(
        "ingest, one core, ÷ empty aiohttp web.Server", "ingest",
        Key("64 clients", "maskline"), (Key("64 clients", "empty aiohttp"),), "per_s", 1.0, 1.3,
    ),
    Target(
        "ingest, one core, ÷ fastify + ioredis", "ingest",
        Key("64 clients", "maskline"), (Key("64 clients", "fastify + ioredis"),), "per_s", 1.5, 2.0,
    ),
    Target(
        "ingest, 1 % GETs, 404s and wrong signatures, ÷ callbacks alone", "ingest",
        Key("64 clients, 1 % odd requests", "maskline"), (Key("64 clients", "maskline"),), "per_s", 0.9, 0.95,
    ),
    Target(
        "ingest p99 at 50 % load, ÷ the empty server's", "ingest",
        Key("half load", "maskline"), (Key("half load", "empty aiohttp"),), "p99_us", 2.0, 1.5, at_most=True,
    ),
    Target(
        "worker, one core, ÷ hand-written loop", "worker",
        Key("backlog", "maskline"), (Key("backlog", "hand-written"),), "per_s", 2.2, 3.0,
    ),
    Target(
        "worker, light load, ÷ hand-written loop", "worker",
        Key("light", "maskline"), (Key("light", "hand-written"),), "per_s", 1.0, 1.5,
    ),
    Target(
        "worker, one core, ÷ the best of FastStream, taskiq, streaq", "worker",
        Key("backlog", "maskline"),
        (Key("backlog", "FastStream"), Key("backlog", "taskiq-redis"), Key("backlog", "streaq")),
        "per_s", 15, 30,
    ),
    Target(
        "received to handled at 50 % load, p99", "latency",
        Key("50 %", "maskline"), (), "p99_ms", 15, 10, at_most=True, unit="ms",
    ),
    Target(
        "received to handled at 50 % load, p50", "latency",
        Key("50 %", "maskline"), (), "p50_ms", 5, 3, at_most=True, unit="ms",
    ),
    Target(
        "CPU of a callback at 1,000/s, ÷ hand-written pair", "cost",
        Key("1,000/s", "maskline"), (Key("1,000/s", "hand-written"),), "cpu_us", 0.55, 0.4, at_most=True,
    ),
    Target(
        "CPU of a callback at 4,000/s, ÷ hand-written pair", "cost",
        Key("4,000/s", "maskline"), (Key("4,000/s", "hand-written"),), "cpu_us", 0.55, 0.4, at_most=True,
    ),
    Target(
        "Valkey's CPU at 1,000/s, ÷ hand-written pair", "cost",
        Key("1,000/s", "maskline"), (Key("1,000/s", "hand-written"),), "valkey_us", 0.75, 0.5, at_most=True,
    ),
    Target(
        "Valkey's CPU at 12,000/s, ÷ hand-written pair's at 4,000/s", "cost",
        Key("12,000/s", "maskline"), (Key("4,000/s", "hand-written"),), "valkey_us", 0.35, 0.2, at_most=True,
    ),
    Target(
        "received to handled at 1,000/s, p50", "cost",
        Key("1,000/s", "maskline"), (), "p50_ms", 5, 4, at_most=True, unit="ms",
    ),
    Target(
        "received to handled at 1,000/s, p99", "cost",
        Key("1,000/s", "maskline"), (), "p99_ms", 15, 10, at_most=True, unit="ms",
    ),
    Target(
        "greatest rate sustained, ÷ before", "cost",
        Key("greatest rate", "maskline"), (Key("greatest rate", "before"),), "per_s", 1.25, 1.6,
    ),
    Target(
        "idle, CPU of all three, ÷ before", "cost",
        Key("idle", "maskline"), (Key("idle", "before"),), "cpu_percent", 1.1, 1.0, at_most=True,
    ),
    Target(
        "spool, 64 clients, ÷ SQLite committing one by one", "spool",
        Key("journal", "maskline"), (Key("journal", "a commit each"),), "per_s", 15, 25,
    ),
    Target(
        "cost per event, 1,000,000 live sessions ÷ 1,000", "growth",
        Key("sessions", "1,000,000"), (Key("sessions", "1,000"),), "cpu_us", 1.3, 1.1, at_most=True,
    ),
)  # fmt: skip


def outcome(samples: Sequence[Sample], target: Target) -> Outcome | None:
    """The outcome of a target; None if its slices were not measured."""
    values = by_round(samples, target.part, target.key, target.metric)
    if target.over:
        others = [by_round(samples, target.part, key, target.metric) for key in target.over]
        found = spread(ratios(values, best_of(others, most=not target.at_most)))
    else:
        found = spread(list(values.values()))
    return None if found is None else Outcome(target, found)
