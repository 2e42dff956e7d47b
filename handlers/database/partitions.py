"""The partitions of `events`: one a UTC day, made ahead and on demand, dropped whole once all of it is old enough.

There is no partition for the rest: it would have to be searched, under a lock, whenever a partition is made. A day
that no callback can have been received on (before FIRST_DAY, or more than AHEAD_DAYS from now) gets no partition; its
rows are refused.

Partitions are attached, not created in place: attaching does not wait for, nor hold up, those who write and read.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Final

from maskline.handlers.database.connection import Connection

FIRST_DAY: Final = date(2015, 1, 1)
"""Before Plivo had number masking. A clock that was never set begins in 1970."""
AHEAD_DAYS: Final = 3
"""Made ahead, so that midnight comes upon nobody; and how far a clock may be ahead of PostgreSQL's."""
SUMMARIES_DELETED_MAX: Final = 10_000
"""Old calls that one statement deletes: a short transaction, and little to undo if it fails."""

_NAME: Final = re.compile(r"events_(\d{8})")
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('maskline partitions ' || $1, 0))"
_TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('maskline retention ' || $1, 0))"
_PARTITIONS: Final = """
SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = $1::text::regclass
"""
_DELETE_SUMMARIES: Final = """
DELETE FROM {schema}.call_summaries WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {schema}.call_summaries WHERE received_at < $1 LIMIT $2
))
"""


def partition_name(day: date) -> str:
    """The table that holds a day's events."""
    return f"events_{day:%Y%m%d}"


def day_of(name: str) -> date | None:
    """The day of a partition; None for a table that is none of ours."""
    match = _NAME.fullmatch(name)
    try:
        return datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC).date() if match else None
    except ValueError:
        return None


def is_possible(day: date, today: date) -> bool:
    """Whether a callback can have been received on a day."""
    return FIRST_DAY <= day <= today + timedelta(days=AHEAD_DAYS)


def days_ahead(today: date) -> list[date]:
    """The days that should have a partition now."""
    return [today + timedelta(days=count) for count in range(AHEAD_DAYS + 1)]


def days_to_drop(days: Iterable[date], today: date, retention_days: int) -> list[date]:
    """The days of which even the last moment is `retention_days` ago, oldest first. 0 keeps all."""
    if not retention_days:
        return []
    # The day `retention_days` ago is not over yet at this time of the day: it stays.
    return sorted(day for day in days if (today - day).days > retention_days)


async def existing_days(connection: Connection, schema: str) -> set[date]:
    """The days that have a partition."""
    names = await connection.fetch(_PARTITIONS, f"{schema}.events")
    return {day for (name,) in names if (day := day_of(name)) is not None}


async def create_days(connection: Connection, schema: str, days: Iterable[date]) -> None:
    """Make the partitions of days that lack one. Many workers may do so at once.

    Each in a transaction of its own: a replay of years may need more of them than fit into one statement's time, and
    the next attempt goes on where this one ended.
    """
    for day in sorted(set(days) - await existing_days(connection, schema)):
        async with connection.transaction():
            await connection.execute(_LOCK, schema)
            if day in await existing_days(connection, schema):
                continue  # another worker has made it meanwhile
            name = f"{schema}.{partition_name(day)}"
            # Left behind detached, by hand: it has rows, and is attached again with them.
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {name} (LIKE {schema}.events INCLUDING ALL)"
            )
            await connection.execute(
                f"ALTER TABLE {schema}.events ATTACH PARTITION {name} "
                f"FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
            )


async def drop_old(connection: Connection, schema: str, retention_days: int) -> list[date]:
    """Drop the partitions, and delete the calls, that are older than `retention_days`; returns the days dropped.

    One worker at a time does so, by PostgreSQL's clock; for the others there is nothing to do. A partition that
    somebody reads for longer than `lock_timeout` raises asyncpg.LockNotAvailableError: the next sweep drops it.
    """
    dropped: list[date] = []
    while retention_days:
        async with connection.transaction():
            if not await connection.fetchval(_TRY_LOCK, schema):
                return dropped
            today = await today_of(connection)
            days = days_to_drop(await existing_days(connection, schema), today, retention_days)
            if not days:
                break
            # One in each transaction: the lock on `events` is short.
            await connection.execute("SET LOCAL lock_timeout = '1s'")
            await connection.execute(f"DROP TABLE {schema}.{partition_name(days[0])}")
            dropped.append(days[0])
    if retention_days:
        await _delete_summaries(
            connection, schema, await today_of(connection) - timedelta(days=retention_days)
        )
    return dropped


async def _delete_summaries(connection: Connection, schema: str, first_day: date) -> None:
    """Delete the calls of which nothing was received since `first_day`, a few at a time."""
    before = datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC)
    statement = _DELETE_SUMMARIES.format(schema=schema)
    while True:
        async with connection.transaction():
            if not await connection.fetchval(_TRY_LOCK, schema):
                return
            done = await connection.execute(statement, before, SUMMARIES_DELETED_MAX)
        if int(done.split()[-1]) < SUMMARIES_DELETED_MAX:
            return


async def today_of(connection: Connection) -> date:
    """The present day in UTC by PostgreSQL's clock, which is the same for all workers."""
    today: date = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    return today
