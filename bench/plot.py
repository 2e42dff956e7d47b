"""The plot for the README: bars of paired ratios, as an SVG that is read on light and on dark pages.

`python -m bench.plot RESULTS.json … docs/bench.svg` draws it again from the results of one run or of several.
"""

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from bench.paired import Key, Sample, Spread, by_round, ratios, spread
from bench.results import read_report

WIDTH: Final = 720
LABEL_WIDTH: Final = 230
VALUE_WIDTH: Final = 60
BAR_HEIGHT: Final = 16
ROW_HEIGHT: Final = 24
PANEL_GAP: Final = 18
TITLE_HEIGHT: Final = 26
OURS: Final = "maskline"

_STYLE: Final = """\
text{font:13px system-ui,sans-serif;fill:#24292f}
.t{font-weight:600}.v{fill:#57606a}
.o{fill:#8c959f}.m{fill:#1f883d}
.s{stroke:#24292f;stroke-width:1.2}.b{stroke:#8c959f;stroke-dasharray:3 3}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.v{fill:#9198a1}.o{fill:#6e7681}.m{fill:#3fb950}.s{stroke:#e6edf3}}\
"""


class Bar(NamedTuple):
    label: str
    found: Spread


class Panel(NamedTuple):
    title: str
    bars: Sequence[Bar]


class Wanted(NamedTuple):
    """A panel before it is known what was measured."""

    title: str
    part: str
    case: str
    base: str
    variants: Sequence[str]


WANTED: Final = (
    Wanted(
        "Requests a second on one core, × an empty aiohttp web.Server",
        "ingest",
        "64 clients",
        "empty aiohttp",
        ("maskline", "fastify + ioredis", "aiohttp + redis-py", "FastAPI + redis-py"),
    ),
    Wanted(
        "Events a second on one core, × a hand-written loop without order or state",
        "worker",
        "backlog",
        "hand-written",
        ("maskline", "FastStream", "taskiq-redis", "streaq"),
    ),
)


def panels(samples: Sequence[Sample]) -> list[Panel]:
    """The panels whose slices were run."""
    found = []
    for wanted in WANTED:
        bases = by_round(samples, wanted.part, Key(wanted.case, wanted.base), "per_s")
        bars = [
            Bar(name, them)
            for name in wanted.variants
            if (
                them := spread(ratios(by_round(samples, wanted.part, Key(wanted.case, name), "per_s"), bases))
            )
        ]
        if bars:
            found.append(Panel(wanted.title, bars))
    return found


def svg(shown: Sequence[Panel]) -> str:
    """The panels below each other: a bar a variant, a line through it from the least to the greatest round."""
    parts: list[str] = []
    y = 4
    for panel in shown:
        parts.append(f'<text class="t" x="4" y="{y + 14}">{escape(panel.title)}</text>')
        y += TITLE_HEIGHT
        scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / max(1.0, *(bar.found.high for bar in panel.bars))
        foot = y + ROW_HEIGHT * len(panel.bars)
        one = LABEL_WIDTH + scale
        parts.append(f'<line class="b" x1="{one:.1f}" y1="{y - 4}" x2="{one:.1f}" y2="{foot - 4}"/>')
        for bar in panel.bars:
            parts += _bar(bar, y, scale)
            y += ROW_HEIGHT
        y += PANEL_GAP
    height = y - PANEL_GAP + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="{escape("; ".join(panel.title for panel in shown))}">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    middle = y + BAR_HEIGHT / 2
    end, low, high = (LABEL_WIDTH + value * scale for value in bar.found[:3])
    look, width = "m" if bar.label == OURS else "o", end - LABEL_WIDTH
    return [
        f'<text x="{LABEL_WIDTH - 8}" y="{y + 13}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{look}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
        f'<line class="s" x1="{low:.1f}" y1="{middle:g}" x2="{high:.1f}" y2="{middle:g}"/>',
        f'<text class="v" x="{max(end, high) + 6:.1f}" y="{y + 13}">{bar.found.median:.2f}</text>',
    ]


def main(argv: Sequence[str]) -> int:
    *results, target = argv
    samples = [sample for path in results for sample in read_report(Path(path)).samples]
    Path(target).write_text(svg(panels(samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
