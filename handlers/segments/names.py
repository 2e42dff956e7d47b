"""The names of segments: a folder a day, and names that sort by time. Pure.

`2026/11/30/20261130T083434123Z-20261130T083429001Z-k3jx9a2p-000017.segment`: when it was closed, when the earliest of
its callbacks was received, who wrote it, and its number. So a reader that looks for a range of time opens no segment in
vain, and two writers never choose the same name.
"""

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

SUFFIX: Final = ".segment"
_MOMENT: Final = r"(\d{8}T\d{9}Z)"
_NAME: Final = re.compile(rf"{_MOMENT}-{_MOMENT}-([a-z0-9]{{1,32}})-(\d{{6,12}}){re.escape(SUFFIX)}")
_DAY: Final = re.compile(r"\d{4}/\d{2}/\d{2}")
DAY_MS: Final = 86_400_000
TIME_MAX_MS: Final = 253_402_300_799_999
"""The end of the year 9999; a time beyond it, or before 1970, is written as the nearest of them."""


class SegmentName(NamedTuple):
    """What the name of a segment says."""

    closed_ms: int
    """When its writer closed it, by the writer's clock, and not before the latest `received_at_ms` in it: milliseconds
    since the epoch."""
    earliest_ms: int
    """The least `received_at_ms` of its callbacks."""
    writer: str
    """A random word for each writing process."""
    number: int
    """Counts that writer's segments."""

    @property
    def path(self) -> str:
        """The path in the archive, with `/` between its parts."""
        closed = _written(self.closed_ms)
        folder = f"{closed[:4]}/{closed[4:6]}/{closed[6:8]}"
        return f"{folder}/{closed}-{_written(self.earliest_ms)}-{self.writer}-{self.number:06d}{SUFFIX}"

    @classmethod
    def read(cls, path: str) -> Self | None:
        """What a path says; None if it is not the name of a segment."""
        match = _NAME.fullmatch(path.rpartition("/")[2])
        if match is None:
            return None
        try:
            return cls(_read(match[1]), _read(match[2]), match[3], int(match[4]))
        except ValueError:
            return None


class TimeRange(NamedTuple):
    """From `since_ms` on, and before `until_ms`; None for no bound. Milliseconds since the epoch."""

    since_ms: int | None = None
    until_ms: int | None = None

    def may_hold(self, name: SegmentName) -> bool:
        """Whether a segment of this name may have callbacks that were received in the range."""
        return (self.since_ms is None or name.closed_ms >= self.since_ms) and (
            self.until_ms is None or name.earliest_ms < self.until_ms
        )

    def may_hold_day(self, day: str) -> bool:
        """Whether a day's folder, as `2026/11/30`, may have such segments; what is no day's folder has none."""
        if not _DAY.fullmatch(day):
            return False
        try:
            begins = datetime.strptime(day, "%Y/%m/%d").replace(tzinfo=UTC)
        except ValueError:
            return False
        return self.since_ms is None or begins.timestamp() * 1000 + DAY_MS > self.since_ms


def _written(milliseconds: int) -> str:
    seconds, rest = divmod(min(max(milliseconds, 0), TIME_MAX_MS), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%S}{rest:03d}Z".rjust(19, "0")


def _read(text: str) -> int:
    moment = datetime.strptime(text[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return round(moment.timestamp()) * 1000 + int(text[15:18])
