"""What a chaos run prints in the end: the table, the findings. Pure but for the printing."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from checker import EXAMPLES_MAX, PROMISES, Verdict
from history import Fault, History, Recovery
from rich.console import Console
from rich.markup import escape
from rich.table import Table

COUNTED = (
    "requests",
    "callbacks",
    "callbacks answered 200",
    "repeats answered 200",
    "answered otherwise",
    "not answered",
    "calls",
    "calls cut",
    "dead letters",
    "behind dead letters",
    "discarded",
    "in_order",
    "unsequenced",
    "after_gap",
    "given up, answered too late",
    "given up, its node was dead or cut off",
    "late",
    "doubled in the crash window",
    "commands of operators",
    "run again by an operator",
    "tries forgotten in a crash",
    "tries of a history that came back",
    "another first after a takeover",
    "at once, of a disturbed owner",
    "started by a stopped owner",
    "slow events looked at",
    "torn lines",
)
"""Counts of the checker that are shown, in this order."""


def faults_injected(faults: Iterable[Fault]) -> Counter[str]:
    """How many of each kind, by `kind role`."""
    return Counter(f"{fault.kind} {fault.target.partition('-')[0]}" for fault in faults)


def undisturbed(takeovers: Iterable[Recovery], faults: Sequence[Fault]) -> list[Recovery]:
    """The takeovers during which nothing else was wrong with Redis or a worker: those that show what a lease costs."""
    return [
        it
        for it in takeovers
        if not any(
            fault.target != it.target
            and not fault.target.startswith("ingest")
            and fault.began <= it.began + it.took_s
            and it.began <= fault.ended + 1.0  # then it is connected again
            for fault in faults
        )
    ]


def times(recoveries: Sequence[Recovery]) -> dict[str, float]:
    """Number, median and greatest of recovery times, in seconds."""
    took = sorted(it.took_s for it in recoveries)
    if not took:
        return {"count": 0}
    return {
        "count": len(took),
        "median_s": round(statistics.median(took), 3),
        "max_s": round(took[-1], 3),
    }


def report(history: History, verdict: Verdict, **facts: Any) -> dict[str, Any]:
    """What `--json` prints; `facts` (seed, duration, …) stand first."""
    faults: list[Fault] = history.of(Fault)
    recoveries: list[Recovery] = history.of(Recovery)
    takeovers = [it for it in recoveries if it.kind == "takeover"]
    alone = undisturbed(takeovers, faults)
    return facts | {
        "held": verdict.good,
        "faults": dict(sorted(faults_injected(faults).items())),
        "kills": sum(fault.kind == "kill" for fault in faults),
        "counts": {name: verdict.counts[name] for name in COUNTED},
        "broken": {promise: len(verdict.broken.get(promise, [])) for promise in PROMISES},
        "examples": [
            f"{promise}: {finding.detail}"
            for promise, findings in verdict.broken.items()
            for finding in findings[:EXAMPLES_MAX]
        ],
        "recovery": {
            "takeover after kill -9, nothing else wrong": times(alone),
            "takeover after kill -9, all": times(takeovers),
            "200 again": times([it for it in recoveries if it.kind == "answers"]),
            "replayed": times([it for it in recoveries if it.kind == "replayed"]),
            "drained": times([it for it in recoveries if it.kind == "drained"]),
        },
    }


def show(console: Console, summary: dict[str, Any], lease_s: float) -> None:
    """The report for a reader."""
    table = Table(title=f"chaos, seed {summary['seed']}, {summary['duration_s']:g} s", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, number in summary["faults"].items():
        table.add_row(name, f"{number:,}", "faults injected" if name == next(iter(summary["faults"])) else "")
    table.add_section()
    for name, number in summary["counts"].items():
        table.add_row(name, f"{number:,}", "")
    table.add_section()
    for name, took in summary["recovery"].items():
        said = f"median {took['median_s']:.2f} s, max {took['max_s']:.2f} s" if took["count"] else ""
        if took["count"] and name.startswith("takeover"):
            said += f" ({took['median_s'] / lease_s:.2f} leases)"
        table.add_row(name, f"{took['count']:,}", said)
    table.add_section()
    for promise, number in summary["broken"].items():
        table.add_row(promise, f"{number:,}", "[red]broken[/red]" if number else "[green]kept[/green]")
    console.print(table)
    for example in summary["examples"]:
        console.print(escape(example), soft_wrap=True)
