"""Measures `handlers.postgres`: a backlog stored, beside the same backlog with a handler that does nothing.

The worker has a core of its own; PostgreSQL, Valkey and the load share the other one.
"""

from functools import partial
from typing import Final

from bench import data
from bench.machine import cores
from bench.paired import Key
from bench.parts.worker import MASKLINE, Consumer, backlog
from bench.plan import CPU, RATE, RATIO, SERVER, Column, Options, Plan, Slice
from bench.postgres import postgres

STORING: Final = MASKLINE._replace(
    name="handlers.postgres", environment=(("MASKLINE_HANDLERS", "bench.worker.postgres_handlers"),)
)
CONCURRENCY: Final = (256, 1024)
"""Events under way, MASKLINE_CONCURRENCY: the default, and enough for batches of hundreds."""


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    slices: list[Slice] = []
    bases: dict[str, Key] = {}
    for concurrency in CONCURRENCY:
        case = f"backlog, {concurrency:,} under way"
        bases[case] = Key(case, "bare")
        slices += [
            Slice(bases[case], partial(backlog, _with(MASKLINE, concurrency), options.events)),
            Slice(Key(case, STORING.name), partial(stored, _with(STORING, concurrency), options.events)),
        ]
    title = (
        f"handlers.postgres, {options.events:,} events. Base: a handler that does nothing, in the same round"
    )
    return Plan("postgres", title, slices, bases, [RATIO, RATE, CPU, SERVER, _POSTGRES])


def stored(consumer: Consumer, events: int) -> dict[str, float]:
    """As `backlog`, each event stored."""
    with postgres(core=cores().rest) as database:
        own = (*consumer.environment, ("MASKLINE_POSTGRES_URL", database.url))
        before_s = database.cpu_s()
        values = backlog(consumer._replace(environment=own), events)
        total = -(-events // data.SESSION_EVENTS) * data.SESSION_EVENTS
        return values | {"postgres_us": (database.cpu_s() - before_s) / total * 1e6}


def _with(consumer: Consumer, concurrency: int) -> Consumer:
    return consumer._replace(environment=(*consumer.environment, ("MASKLINE_CONCURRENCY", str(concurrency))))


_POSTGRES: Final = Column("postgres_us", "PostgreSQL µs", format=".1f")
