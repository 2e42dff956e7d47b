"""Reports the result of `maskline simulate`, as data and as lines to read."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

from maskline.console.simulate.plan import PlannedRequest, PlanOptions, SessionPlan
from maskline.console.simulate.player import Tally


class PlanProgress:
    """Counts the requests planned and sent, and so the sessions that are finished."""

    def __init__(self, on_planned: Callable[[SessionPlan], None] = lambda _: None) -> None:
        """`on_planned` is called with each session's plan before its first request."""
        self._on_planned = on_planned
        self._left: Counter[int] = Counter()
        self.sessions = 0
        self.sessions_done = 0
        self.lost = 0
        self.duplicates = 0

    def record(self, plans: Iterator[SessionPlan]) -> Iterator[SessionPlan]:
        """Pass the plans on, counting each."""
        for plan in plans:
            self.sessions += 1
            self.lost += len(plan.lost)
            self.duplicates += plan.duplicates
            if plan.sends:
                self._left[plan.sends[0].session] = len(plan.sends)
            else:
                self.sessions_done += 1
            self._on_planned(plan)
            yield plan

    def sent(self, send: PlannedRequest) -> None:
        """Count a request that was sent."""
        self._left[send.session] -= 1
        if not self._left[send.session]:
            del self._left[send.session]
            self.sessions_done += 1


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values, `share` from 0 to 1; 0 if there are none."""
    return ordered[max(0, ceil(len(ordered) * share) - 1)] if ordered else 0.0


def report(url: str, options: PlanOptions, progress: PlanProgress, tally: Tally) -> dict[str, Any]:
    """The report that `--json` prints."""
    latencies = sorted(tally.latencies_ms)
    return {
        "url": url,
        "seed": options.seed,
        "sessions": progress.sessions,
        "sent": tally.sent,
        "duplicates": tally.duplicates,
        "lost": progress.lost,
        "retried": tally.retried,
        "answered": {str(status): number for status, number in sorted(tally.answers.items())},
        "unanswered": dict(sorted(tally.unanswered.items())),
        "elapsed_s": round(tally.elapsed_s, 3),
        "rate": round(tally.sent / tally.elapsed_s, 1) if tally.elapsed_s else 0.0,
        "latency_ms": {
            "p50": round(percentile(latencies, 0.5), 2),
            "p90": round(percentile(latencies, 0.9), 2),
            "p99": round(percentile(latencies, 0.99), 2),
            "max": round(latencies[-1], 2) if latencies else 0.0,
        },
    }


def lines(summary: dict[str, Any]) -> Iterator[str]:
    """The report as lines to read."""
    yield (
        f"sent        {summary['sent']:,} callbacks of {summary['sessions']:,} sessions, "
        f"{summary['duplicates']:,} of them duplicates, "
        f"in {summary['elapsed_s']:.1f} s ({summary['rate']:,.0f}/s)"
    )
    if summary["lost"]:
        yield f"lost        {summary['lost']:,} on purpose, never sent"
    yield "answered    " + (_counts(summary["answered"]) or "none")
    if summary["unanswered"]:
        yield "unanswered  " + _counts(summary["unanswered"])
    if summary["retried"]:
        yield f"retried     {summary['retried']:,} after a timeout"
    if not summary["answered"]:
        return
    latency = summary["latency_ms"]
    yield (
        f"latency     p50 {latency['p50']:.1f} ms, p90 {latency['p90']:.1f} ms, "
        f"p99 {latency['p99']:.1f} ms, max {latency['max']:.1f} ms"
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {number:,}" for name, number in counts.items())
