"""The store of `handlers.postgres`: its connections, writers and upkeep, from the worker's start to its stop.

While PostgreSQL is away the worker starts all the same, for other handlers have work to do: the schema is brought up to
date with the first connection there is. What no waiting mends (a wrong password, a missing right, a schema of a newer
release) stops the start.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import asyncpg
import structlog

from maskline import Context
from maskline.events import CallSummary, Event
from maskline.handlers.database.connection import (
    Connection,
    close,
    connect,
    error_text,
    verdict_on,
)
from maskline.handlers.database.migrator import migrate
from maskline.handlers.database.partitions import create_days, days_ahead, drop_old, is_possible, today_of
from maskline.handlers.database.rows import DAY, EVENT_COLUMNS, SUMMARY_COLUMNS, RowBuilder
from maskline.handlers.database.verdicts import Verdict
from maskline.handlers.database.writer import DayPartitions, Table, TableWriter, upsert
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings

EVENT_WRITERS: Final = 2
"""Batches of events under way at once: one is put together while the other is committed."""
SUMMARY_WRITERS: Final = 1
UPKEEP_INTERVAL_S: Final = 600.0
"""Between two looks at the partitions; a day has 144 of them."""
START_TIMEOUT_S: Final = 75.0
"""For the first connection and the migrations; another worker may be at them."""

_log = structlog.get_logger("maskline.handlers")


class Store:
    """Stores events and call summaries. `open_store` makes one."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.postgres_url
        self._schema = schema = settings.postgres_schema
        self._retention_days = settings.postgres_retention_days
        self._rows = RowBuilder(plain_numbers=settings.postgres_numbers == "plain")
        self._partitions = DayPartitions(
            lambda connection, days: create_days(connection, schema, days),
            lambda day: is_possible(day, datetime.now(UTC).date()),
        )
        self._migrated = False
        self._migrating = asyncio.Lock()
        self._events = TableWriter(
            _events_table(schema), self._connect, self._partitions, self._check_schema_again
        )
        self._summaries = TableWriter(
            _summaries_table(schema), self._connect, self._partitions, self._check_schema_again
        )

    def add_event(self, event: Event, ctx: Context) -> asyncio.Future[None]:
        """Store an event. The future ends once its row is committed.

        Await it: it raises Reject where PostgreSQL cannot hold the row, StoreUnavailableError where the server is away.
        """
        return self._events.add(self._rows.event_row(event, ctx))

    def add_summary(self, summary: CallSummary, ctx: Context) -> asyncio.Future[None]:
        """Store a call, unless a greater revision of it is stored. As `add_event`."""
        return self._summaries.add(self._rows.summary_row(summary, ctx))

    async def start(self) -> None:
        """Connect and bring the schema up to date, if the server can be reached.

        Raises ConfigError, one line, for what no waiting mends.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                connection = await self._connect()
                try:
                    await self._make_partitions(connection)
                finally:
                    await close(connection)
        except ConfigError:
            raise
        except Exception as error:
            if verdict_on(error) is Verdict.SETUP or isinstance(error, asyncpg.ClientConfigurationError):
                raise ConfigError(f"MASKLINE_POSTGRES_URL: {error_text(error)}") from error
            _log.warning("postgres unavailable at start", reason=error_text(error))

    async def run(self) -> None:
        """Write and look after the partitions, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for writer, count in ((self._events, EVENT_WRITERS), (self._summaries, SUMMARY_WRITERS)):
                for _ in range(count):
                    tasks.create_task(writer.run())
            tasks.create_task(self._look_after())

    async def _connect(self) -> Connection:
        """A connection whose schema is up to date."""
        connection = await connect(self._url)
        try:
            if not self._migrated:
                async with self._migrating:
                    count = await migrate(connection, self._schema)
                    self._migrated = True
                if count:
                    _log.info("postgres schema migrated", schema=self._schema, migrations=count)
        except BaseException:
            await close(connection)
            raise
        return connection

    def _check_schema_again(self) -> None:
        self._migrated = False

    async def _make_partitions(self, connection: Connection) -> None:
        await create_days(connection, self._schema, days_ahead(await today_of(connection)))

    async def _look_after(self) -> None:
        """Make partitions ahead and drop old ones, every UPKEEP_INTERVAL_S or so."""
        while True:
            try:
                await self._look_after_once()
            except Exception as error:  # noqa: BLE001  whatever it is, the next look may succeed
                _log.warning("postgres upkeep failed", reason=error_text(error))
            # At random: workers that were started together do not come together.
            await asyncio.sleep(UPKEEP_INTERVAL_S * random.uniform(0.5, 1.0))  # noqa: S311

    async def _look_after_once(self) -> None:
        connection = await self._connect()
        try:
            await self._make_partitions(connection)
            if dropped := await drop_old(connection, self._schema, self._retention_days):
                self._partitions.forget()
                days = [day.isoformat() for day in dropped]
                _log.info("postgres partitions dropped", days=days, retention_days=self._retention_days)
        finally:
            await close(connection)


@contextlib.asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store at `settings.postgres_url`. Raises ConfigError, one line, where it cannot be."""
    store = Store(settings)
    await store.start()
    running = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _events_table(schema: str) -> Table:
    """A row that is there is replaced by a newer owner's, and by a replay: a newer release may read more in it."""
    key = ("session_uuid", "idempotency_key", "day")
    newer = (
        "EXCLUDED.fencing_token > stored.fencing_token "
        "OR (EXCLUDED.fencing_token = stored.fencing_token AND EXCLUDED.replayed)"
    )
    return Table(upsert(schema, "events", "event_row", EVENT_COLUMNS, key, newer), EVENT_COLUMNS, DAY)


def _summaries_table(schema: str) -> Table:
    """The greatest revision wins; of two that are the same, the newer owner's."""
    newer = "(EXCLUDED.revision, EXCLUDED.fencing_token) > (stored.revision, stored.fencing_token)"
    statement = upsert(schema, "call_summaries", "call_summary_row", SUMMARY_COLUMNS, ("call_key",), newer)
    return Table(statement, SUMMARY_COLUMNS, None)
