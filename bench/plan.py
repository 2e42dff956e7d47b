"""A part of the benchmark as data: its slices, what they are compared with, and the columns of its table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.paired import Key, Sample

Measure = Callable[[], dict[str, float]]


class Slice(NamedTuple):
    """One variant in one case, and how it is measured: once a round, in processes of its own."""

    key: Key
    measure: Measure


class Column(NamedTuple):
    """A column of a part's table."""

    metric: str
    label: str
    ratio: bool = False
    """Shown as a ratio to the case's base, paired by round; else the median itself."""
    inverse: bool = False
    """Base ÷ value: for a cost, where less is better and a ratio over 1 should say so."""
    format: str = ",.0f"


class Plan(NamedTuple):
    """One part of the benchmark."""

    name: str
    title: str
    slices: Sequence[Slice]
    bases: dict[str, Key]
    """The variant that each case is compared with; a case without one shows figures alone."""
    columns: Sequence[Column]
    report: Callable[[Sequence[Sample]], str] | None = None
    """Makes what is printed below the table, as it is."""


class Options(NamedTuple):
    """The options of a run."""

    rounds: int = 6
    slice_s: float = 2.0
    warm_s: float = 0.5
    full: bool = False
    """Whether to measure the sizes that take minutes as well."""
    node: bool = True
    """Whether there is a Node on the machine."""
    events: int = 100_000
    """Of a backlog in `worker` and `growth`; the peers that are slower get a tenth."""
    cases: frozenset[str] = frozenset()
    """Of the part `cost`: those that are measured; empty: all."""
    against: Path | None = None
    """Another checkout, with which `cost` compares."""


RATE = Column("per_s", "a second")
RATIO = Column("per_s", "× base", ratio=True, format=".2f")
CPU = Column("cpu_us", "CPU µs", format=".1f")
CPU_RATIO = Column("cpu_us", "by CPU", ratio=True, inverse=True, format=".2f")
SERVER = Column("server_us", "Valkey µs", format=".1f")
