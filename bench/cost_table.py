"""What a callback costs, as Markdown: the tables of docs/scaling.md.

`python -m bench.cost_table RESULTS.json …` prints them again from the results of one run or of several.
With `docs/scaling.md` at the end it writes them there, between two comments, without those of another checkout.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import structs

from bench.paired import Key, Sample, by_round, ratios, spread
from bench.results import read_report

PART: Final = "cost"
BASE: Final = "hand-written"
OTHER: Final = "before"
"""Another checkout: of interest while something is changed, not in a page."""
BEGIN: Final = "<!-- make bench ONLY=cost -->"
END: Final = "<!-- end of make bench -->"
COST_HEAD: Final = (
    "| rate | | CPU µs: ingest + Valkey + worker | ÷ hand-written | Valkey ÷ hand-written's "
    "| received to handled, p50 / p99 ms | answered, p50 / p99 ms | bytes: AOF, to Redis, from Redis |"
)
COMMAND_US_MIN: Final = 0.5
"""Commands that take less of a callback are left out."""


def markdown(samples: Sequence[Sample]) -> str:
    """Two tables: the costs of each rate and system, and Valkey's commands. Medians of the rounds."""
    keys = _keys(samples)
    loaded = [key for key in keys if _median(samples, key, "cpu_us") is not None]
    idle = [key for key in keys if _median(samples, key, "cpu_percent") is not None]
    lines = [
        COST_HEAD,
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_cost_row(samples, key) for key in loaded),
        *(_idle_row(samples, key) for key in idle),
        "",
        "| rate | | Valkey's calls a callback (µs a callback) |",
        "| --- | --- | --- |",
        *(f"| {key.case} | {key.variant} | {', '.join(_commands(samples, key))} |" for key in loaded),
    ]
    return "\n".join(lines)


def _keys(samples: Sequence[Sample]) -> list[Key]:
    """What was measured, case by case, the base of each first."""
    keys = list(dict.fromkeys(Key(one.case, one.variant) for one in samples if one.part == PART))
    cases = [key.case for key in keys]
    return sorted(keys, key=lambda key: (cases.index(key.case), key.variant != BASE, key.variant))


def _cost_row(samples: Sequence[Sample], key: Key) -> str:
    def figure(metric: str, form: str = ".0f") -> str:
        return f"{_median(samples, key, metric) or 0:{form}}"

    kept_up = (_median(samples, key, "kept_up") or 0) == 1
    rate = figure("per_s", ",.0f")
    case = key.case if kept_up else f"{key.case}: falls behind at {rate}/s"
    parts = " + ".join(map(figure, ("ingest_us", "valkey_us", "worker_us")))
    cells = [
        f"{case}: {rate}/s" if kept_up and not key.case[0].isdigit() else case,
        key.variant,
        f"{parts} = {figure('cpu_us')}",
        _ratio(samples, key, "cpu_us"),
        _ratio(samples, key, "valkey_us"),
        f"{figure('p50_ms', '.1f')} / {figure('p99_ms', '.1f')}",
        f"{figure('answer_p50_ms', '.1f')} / {figure('answer_p99_ms', '.1f')}",
        ", ".join(map(figure, ("aof_bytes", "to_redis_bytes", "from_redis_bytes"))),
    ]
    return f"| {' | '.join(cells)} |"


def _idle_row(samples: Sequence[Sample], key: Key) -> str:
    names = ("ingest_percent", "valkey_percent", "worker_percent")
    parts = " + ".join(f"{_median(samples, key, name) or 0:.2f}" for name in names)
    ratios_shown = [_ratio(samples, key, name) for name in ("cpu_percent", "valkey_percent")]
    return f"| {key.case} | {key.variant} | {parts} % of a core | {' | '.join(ratios_shown)} | | | |"


def _commands(samples: Sequence[Sample], key: Key) -> Iterator[str]:
    """Commands with their calls and microseconds, the dearest first. A script's time includes that of its commands."""
    names = {
        name.partition(":")[2]
        for one in samples
        if (one.part, one.case, one.variant) == (PART, *key)
        for name in one.values
        if name.startswith("us:")
    }
    costs = {name: _median(samples, key, f"us:{name}") or 0 for name in names}
    for name, cost_us in sorted(costs.items(), key=lambda item: -item[1]):
        if cost_us >= COMMAND_US_MIN:
            yield f"{name} {_median(samples, key, f'calls:{name}') or 0:.2f} ({cost_us:.1f})"


def _median(samples: Sequence[Sample], key: Key, metric: str) -> float | None:
    found = spread(list(by_round(samples, PART, key, metric).values()))
    return None if found is None else found.median


def _ratio(samples: Sequence[Sample], key: Key, metric: str) -> str:
    if key.variant == BASE:
        return "1"
    base = by_round(samples, PART, Key(key.case, BASE), metric)
    found = spread(ratios(by_round(samples, PART, key, metric), base))
    return "" if found is None else f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def joined(runs: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples of several runs as those of one: rounds are numbered on."""
    found: list[Sample] = []
    for samples in runs:
        last = max((sample.round for sample in found), default=0)
        found += [structs.replace(sample, round=last + sample.round) for sample in samples]
    return found


def put_between_marks(page: str, tables: str) -> str:
    """A page with the tables between BEGIN and END, in place of what was there. Raises ValueError without the two."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def main(argv: Sequence[str]) -> int:
    """Print the tables, or write them to the page that the last argument names; the exit code."""
    results = [path for path in map(Path, argv) if path.suffix == ".json"]
    pages = [path for path in map(Path, argv) if path.suffix == ".md"]
    samples = joined([read_report(path).samples for path in results])
    if not pages:
        print(markdown(samples))  # noqa: T201 - its purpose
    for page in pages:
        tables = markdown([sample for sample in samples if sample.variant != OTHER])
        page.write_text(put_between_marks(page.read_text(), tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
