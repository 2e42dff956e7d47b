"""Results as JSON: every sample, and what must be known of the machine."""

from pathlib import Path

import msgspec

from bench.paired import Sample


class Report(msgspec.Struct, frozen=True):
    """One run."""

    ended_at: str
    machine: dict[str, str]
    samples: list[Sample]


def write_report(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read_report(path: Path) -> Report:
    return msgspec.json.decode(path.read_bytes(), type=Report)
