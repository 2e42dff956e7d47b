"""Types of command line arguments that commands share; each raises ArgumentTypeError."""

import argparse
import re
import time
from datetime import UTC, datetime
from typing import Final

_AGO: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)\Z")
_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?\Z")


def share(text: str) -> float:
    """A share: `0` to `1`, or `0%` to `100%`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, not {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number above 0."""
    if not re.match(r"[0-9]{1,12}\Z", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def natural(text: str) -> int:
    """A whole number, 0 included."""
    if not re.match(r"[0-9]{1,18}\Z", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text)


def span(text: str) -> tuple[int, int]:
    """Lowest and highest number of a range: `3` or `1-3`, from 1."""
    match = _SPAN.match(text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"must be a number or a range as 1-3, not {text!r}")
    return low, high


def rate(text: str) -> float:
    """A number a second; 0 is as fast as possible."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(
            f"must be a number a second, 0 for as fast as possible, not {text!r}"
        )
    return value


def moment(text: str) -> int:
    """A time as milliseconds since the epoch: ISO 8601, in UTC unless it has an offset, or so long ago, as `15m`.

    The units are s, m, h and d. A date alone is its midnight. The clock is this machine's. A time before 1970 is 0.
    """
    match = _AGO.match(text)
    if match:
        return max(int(time.time() * 1000) - int(match[1]) * _UNITS_MS[match[2]], 0)
    try:
        read = datetime.fromisoformat(text)
        at_ms = round((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"must be a time as 2026-01-31T08:00 (UTC), or so long ago as 90s, 15m, 2h, 3d, not {text!r}"
        ) from None
    return max(at_ms, 0)
