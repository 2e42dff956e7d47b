"""Writes the rows of one table in batches: tasks that each have a connection of their own.

A row's future ends when its batch is committed, with `Reject` when PostgreSQL cannot hold the row, or with
StoreUnavailableError when the server did not take it. A batch that PostgreSQL refuses because of a row is split in
halves until the row is alone; the others are stored. That row is sent once more with signs in place of what no text can
hold (`rows.with_substitutes`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from typing import Final, NamedTuple

import asyncpg

from maskline import Reject
from maskline.handlers.database.batcher import Batcher, BatchLimits
from maskline.handlers.database.connection import (
    WRITE_TIMEOUT_S,
    Connection,
    StoreUnavailableError,
    close,
    error_text,
    verdict_on,
)
from maskline.handlers.database.rows import Row, SizedRow, with_substitutes
from maskline.handlers.database.verdicts import Verdict

BATCH_LIMITS: Final = BatchLimits(rows_max=1_000, max_bytes=4 << 20, beside_rows_min=200)
"""A thousand rows share an fsync: more would hardly be faster, and all of them wait for the last one. Two hundred take
longer to insert than to commit."""


class Table(NamedTuple):
    """A table as a writer sees it."""

    statement: str
    """Upserts an array of rows, its only parameter."""
    columns: tuple[str, ...]
    day_place: int | None
    """Where a row has the day of its partition; None: the table has no partitions."""


def upsert(
    schema: str, table: str, row_type: str, columns: Sequence[str], key: Sequence[str], newer: str
) -> str:
    """The statement that stores an array of rows; a row whose key is there replaces it where `newer` holds."""
    names = ", ".join(columns)
    rest = [name for name in columns if name not in key]
    return (
        f"INSERT INTO {schema}.{table} AS stored ({names}) "  # noqa: S608  names of ours
        f"SELECT {names} FROM unnest($1::{schema}.{row_type}[]) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET ({', '.join(rest)}, stored_at) = "
        f"ROW({', '.join(f'EXCLUDED.{name}' for name in rest)}, now()) WHERE {newer}"
    )


PendingRow = tuple[Row, asyncio.Future[None]]
"""A row, and the future of the handler that waits for it."""


class DayPartitions:
    """Which days are known to have a partition.

    `create`: makes those of some days. `is_possible`: whether a day can have one.
    """

    def __init__(
        self, create: Callable[[Connection, set[date]], Awaitable[None]], is_possible: Callable[[date], bool]
    ) -> None:
        self._create = create
        self._is_possible = is_possible
        self._known: set[date] = set()

    def impossible(self, days: set[date]) -> set[date]:
        """Those of the days that can have no partition."""
        return {day for day in days - self._known if not self._is_possible(day)}

    async def ensure(self, connection: Connection, days: set[date]) -> None:
        """Make the partitions that are not known to exist."""
        if lacking := days - self._known:
            await self._create(connection, lacking)
            self._known |= lacking

    def forget(self) -> None:
        """Somebody has dropped one."""
        self._known.clear()


class TableWriter:
    """Writes one table.

    `connect`: opens a connection whose schema is up to date. `schema_lost`: called when a table is not there, as after
    a failover to a server that has none of it; the next connection makes it.
    """

    def __init__(
        self,
        table: Table,
        connect: Callable[[], Awaitable[Connection]],
        partitions: DayPartitions,
        schema_lost: Callable[[], None],
        limits: BatchLimits = BATCH_LIMITS,
    ) -> None:
        self._table = table
        self._connect = connect
        self._partitions = partitions
        self._schema_lost = schema_lost
        self._batcher: Batcher[PendingRow] = Batcher(limits)
        self._begin = asyncio.Event()
        self._may_begin = False
        """Whether it is set, which it takes longer to ask."""
        self._under_way = 0
        self._create_future = asyncio.get_running_loop().create_future

    def add(self, sized: SizedRow) -> asyncio.Future[None]:
        """Add a row to the next batch; the future ends once it is committed, or refused."""
        row, size_bytes = sized
        future = self._create_future()
        self._batcher.add((row, future), size_bytes)
        if not self._may_begin:
            self._look()
        return future

    async def run(self) -> None:
        """Write batches, until cancelled. Several may run at once."""
        connection = _OwnConnection(self._connect)
        try:
            while True:
                await self._begin.wait()
                if not self._batcher.may_begin(self._under_way):
                    continue  # another task was faster
                # A handler that was cancelled does not wait for its row any more: it adds it again.
                batch = [pending for pending in self._batcher.take() if not pending[1].done()]
                self._under_way += 1
                self._look()
                try:
                    if batch := self._without_impossible_days(batch):
                        await self._write(connection, batch)
                finally:
                    self._under_way -= 1
                    self._look()
        finally:
            await connection.close()

    def _look(self) -> None:
        """Find out whether a batch may begin."""
        self._may_begin = self._batcher.may_begin(self._under_way)
        if self._may_begin:
            self._begin.set()
        else:
            self._begin.clear()

    def _without_impossible_days(self, batch: list[PendingRow]) -> list[PendingRow]:
        """Refuse the rows that no partition can hold; returns the others."""
        if (place := self._table.day_place) is None:
            return batch
        impossible = self._partitions.impossible({row[place] for row, _ in batch})
        if not impossible:
            return batch
        for row, future in batch:
            if (day := row[place]) in impossible:
                future.set_exception(Reject(f"received on {day}: a clock is wrong"))
        return [pending for pending in batch if not pending[1].done()]

    async def _write(self, connection: "_OwnConnection", batch: list[PendingRow]) -> None:
        """Write a batch, in parts where it must be; all its futures are done afterwards."""
        parts = [batch]
        try:
            while parts:
                part = parts[-1]
                verdict = await self._write_part(connection, part)
                parts.pop()
                if verdict is Verdict.ROW:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
        except Exception as error:  # noqa: BLE001  whatever it is, handlers wait for an answer
            connection.drop()
            if verdict_on(error) is Verdict.SETUP:
                self._partitions.forget()
                self._schema_lost()
            text = f"PostgreSQL did not store the row: {error_text(error)}"
            for future in _waiting(parts):
                # One for each: handlers add their tracebacks to it.
                future.set_exception(StoreUnavailableError(text))
        finally:
            for future in _waiting(parts):  # this task was cancelled
                future.set_exception(StoreUnavailableError("the writer to PostgreSQL was stopped"))

    async def _write_part(self, connection: "_OwnConnection", part: list[PendingRow]) -> Verdict | None:
        """Write some rows. Returns ROW if one of several is refused, None if all are done.

        Raises what asyncpg does where the server does not take them.
        """
        try:
            await self._insert(connection, [row for row, _ in part])
        except Exception as error:
            if verdict_on(error) is not Verdict.ROW:
                raise
            if len(part) > 1:
                return Verdict.ROW
            await self._write_refused(connection, *part[0], error)
            return None
        for _, future in part:
            if not future.done():
                future.set_result(None)
        return None

    async def _write_refused(
        self, connection: "_OwnConnection", row: Row, future: asyncio.Future[None], error: Exception
    ) -> None:
        """Write a single row that PostgreSQL has refused, with substitutes for what no text can hold."""
        mended = with_substitutes(self._table.columns, row)
        if mended is not row:
            try:
                await self._insert(connection, [mended])
            except Exception as second:
                if verdict_on(second) is not Verdict.ROW:
                    raise
                error = second
            else:
                if not future.done():
                    future.set_result(None)
                return
        if not future.done():
            future.set_exception(Reject(f"PostgreSQL cannot hold the row: {error_text(error)}"))

    async def _insert(self, own: "_OwnConnection", rows: list[Row]) -> None:
        """Insert rows, their partitions made before."""
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            connection = await own.get()
            place = self._table.day_place
            days = set() if place is None else {row[place] for row in rows}
            await self._partitions.ensure(connection, days)
            try:
                await connection.fetch(self._table.statement, rows)
            except asyncpg.PostgresError as error:
                if verdict_on(error) is not Verdict.PARTITION:
                    raise
                self._partitions.forget()  # retention, or a person, has dropped it meanwhile
                await self._partitions.ensure(connection, days)
                await connection.fetch(self._table.statement, rows)


class _OwnConnection:
    """A task's connection, opened when it is needed."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    async def get(self) -> Connection:
        """The connection; a new one if the last was lost."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    async def close(self) -> None:
        """Close it, in good order if the server answers."""
        if self._connection is not None:
            await close(self._connection)

    def drop(self) -> None:
        """Close it at once, without a word to the server: it may not answer."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.terminate()
            self._connection = None


def _waiting(parts: list[list[PendingRow]]) -> list[asyncio.Future[None]]:
    return [future for part in parts for _, future in part if not future.done()]
