import argparse
import time

import pytest

from maskline.console.arguments import moment
from maskline.console.confirmation import confirmed
from maskline.schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2026-01-31T08:00:00Z", 1_769_846_400_000),
        ("2026-01-31T08:00:00", 1_769_846_400_000),  # UTC, as all times that commands print
        ("2026-01-31 08:00", 1_769_846_400_000),
        ("2026-01-31T09:30:00.250+01:30", 1_769_846_400_250),
        ("2026-01-31", 1_769_817_600_000),
        ("0001-01-01T00:00+23:59", 0),
        ("999999999d", 0),
    ],
)
def test_moment_reads_iso_8601(text, expected_ms):
    assert moment(text) == expected_ms


@pytest.mark.parametrize(
    ("text", "ago_ms"), [("0s", 0), ("90s", 90_000), ("15m", 900_000), ("2h", 7_200_000), ("3d", 259_200_000)]
)
def test_moment_reads_how_long_ago(text, ago_ms):
    before = time.time() * 1000
    assert before - 1 <= moment(text) + ago_ms <= time.time() * 1000


@pytest.mark.parametrize("text", ["", "yesterday", "15", "-15m", "15 m", "1.5h", "2026-13-01", "٣d"])
def test_moment_refuses_anything_else(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a time"):
        moment(text)


def test_confirmed_needs_a_terminal_or_yes(monkeypatch, tmp_path):
    (tmp_path / "answers").write_text("y\n")
    with (tmp_path / "answers").open() as no_terminal:
        monkeypatch.setattr("sys.stdin", no_terminal)
        with pytest.raises(ConfigError, match=r"dead discard: .*--yes"):
            confirmed("really?", "dead discard", yes=False)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="--yes"):
        confirmed("really?", "dead discard", yes=False)
    assert confirmed("really?", "dead discard", yes=True)
