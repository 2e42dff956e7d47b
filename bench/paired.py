"""Compares samples: ratios of slices of the same round, their median and their spread.

Absolute figures of a machine that does other work vary by a factor of two within an hour, while two slices of one round
see about the same machine. So only figures of the same round are compared.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import msgspec


class Key(NamedTuple):
    """What was measured: which case of a part (`64 clients`), and which variant in it (`maskline`)."""

    case: str
    variant: str


class Sample(msgspec.Struct, frozen=True):
    """One slice."""

    part: str
    case: str
    variant: str
    round: int
    values: dict[str, float]
    """Figures by name: `per_s`, `cpu_us`, …"""


class Spread(NamedTuple):
    """A figure over all rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread | None:
    """Median, least and greatest value; None if there are none."""
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def by_round(samples: Sequence[Sample], part: str, key: Key, metric: str) -> dict[int, float]:
    """The metric of a variant in each round that has it; the last one counts where a round has two."""
    return {
        sample.round: sample.values[metric]
        for sample in samples
        if (sample.part, sample.case, sample.variant) == (part, *key) and metric in sample.values
    }


def ratios(values: Mapping[int, float], bases: Mapping[int, float]) -> list[float]:
    """Value ÷ base of each round that has both; a base of 0 has no ratio."""
    return [values[number] / bases[number] for number in sorted(values) if bases.get(number)]


def best_of(several: Sequence[Mapping[int, float]], *, most: bool = True) -> dict[int, float]:
    """The greatest (or least) value of each round that has any."""
    best = max if most else min
    rounds = sorted({number for values in several for number in values})
    return {number: best(values[number] for values in several if number in values) for number in rounds}
