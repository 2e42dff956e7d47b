"""Reads and writes results as JSON: every sample, and the machine."""

from pathlib import Path

import msgspec

from bench.paired import Sample


class Report(msgspec.Struct, frozen=True):
    """One run."""

    ended_at: str
    machine: dict[str, str]
    samples: list[Sample]


def write_report(path: Path, report: Report) -> None:
    """Write a report, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read_report(path: Path) -> Report:
    """Read a report that `write_report` has written."""
    return msgspec.json.decode(path.read_bytes(), type=Report)
