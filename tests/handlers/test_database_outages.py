"""What `handlers.postgres` makes of a PostgreSQL that stops, hangs, restarts, or hands over to another server."""

import asyncio
import signal

import pytest
from database_kit import context_of, hangup, store_of
from postgres_kit import SUPERUSER

from maskline.handlers.database import connection, writer
from maskline.handlers.database.connection import StoreUnavailableError
from maskline.handlers.database.store import open_store
from maskline.schemas.settings import Settings

PATIENCE_S = 60.0


async def store_when_possible(store, event):
    """Try on as a worker does, until the event is stored."""
    ctx = context_of(event)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await store.add_event(event, ctx)
            except StoreUnavailableError:
                await asyncio.sleep(0.01)


async def counted(server, database="postgres"):
    sql = await server.connect(database)
    try:
        return await sql.fetchval("SELECT count(*) FROM maskline.events")
    finally:
        await sql.close()


async def test_after_a_crash_and_a_restart_events_are_stored_on_new_connections(own_postgres):
    async with store_of(own_postgres, "postgres") as store:
        for sig in (signal.SIGKILL, signal.SIGINT):
            event = hangup()
            await store.add_event(event, context_of(event))
            own_postgres.kill() if sig == signal.SIGKILL else own_postgres.stop(sig)
            with pytest.raises(StoreUnavailableError):
                await store.add_event(hangup(), context_of(event))
            own_postgres.start()
            await store_when_possible(store, hangup())
    assert await counted(own_postgres) == 4


async def test_a_server_that_does_not_answer_fails_its_batch_in_time_and_no_event_waits_for_ever(
    own_postgres, monkeypatch
):
    async with store_of(own_postgres, "postgres") as store:
        event = hangup()
        await store.add_event(event, context_of(event))
        monkeypatch.setattr(writer, "WRITE_TIMEOUT_S", 0.2)
        monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.2)
        own_postgres.signal_all(signal.SIGSTOP)
        try:
            # Not before and after: a server that answers must have its time on a busy machine.
            with monkeypatch.context() as while_stopped:
                while_stopped.setattr(writer, "WRITE_TIMEOUT_S", 0.2)
                while_stopped.setattr(connection, "CONNECT_TIMEOUT_S", 0.2)
                futures = [store.add_event(hangup(), context_of(event)) for _ in range(50)]
                async with asyncio.timeout(PATIENCE_S):
                    outcomes = await asyncio.gather(*futures, return_exceptions=True)
        finally:
            own_postgres.signal_all(signal.SIGCONT)
            monkeypatch.undo()
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        assert {str(outcome) for outcome in outcomes} == {
            "PostgreSQL did not store the row: no answer in time"
        }
        await store_when_possible(store, hangup())


async def test_a_lock_that_somebody_holds_fails_the_batch_with_its_reason(own_postgres, monkeypatch):
    monkeypatch.setattr(connection, "LOCK_TIMEOUT_S", 0.1)
    async with store_of(own_postgres, "postgres") as store:
        event = hangup()
        await store.add_event(event, context_of(event))
        sql = await own_postgres.connect()
        async with sql.transaction():
            await sql.execute("LOCK TABLE maskline.events IN EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailableError, match="lock timeout"):
                await store.add_event(hangup(), context_of(event))
        await sql.close()
        await store_when_possible(store, hangup())


async def test_when_the_first_host_becomes_read_only_the_next_one_is_written_to(
    own_postgres, shared_postgres, database
):
    hosts = f"127.0.0.1:{own_postgres.port},127.0.0.1:{shared_postgres.port}"
    try:
        async with open_store(Settings(postgres_url=f"postgresql://{SUPERUSER}@{hosts}/postgres")) as store:
            await store_when_possible(store, hangup())
            sql = await own_postgres.connect()
            await sql.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await sql.execute("SELECT pg_reload_conf()")
            await sql.close()
            await store_when_possible(store, hangup())
        assert await counted(own_postgres) == 1
        assert await counted(shared_postgres, database) == 1
    finally:
        own_postgres.kill()
        (own_postgres.data / "postgresql.auto.conf").write_text("")


async def test_a_schema_that_is_dropped_fails_events_and_is_made_again_by_the_next_connection(own_postgres):
    async with store_of(own_postgres, "postgres") as store:
        event = hangup()
        await store.add_event(event, context_of(event))
        sql = await own_postgres.connect()
        await sql.execute("DROP SCHEMA maskline CASCADE")
        await sql.close()
        with pytest.raises(StoreUnavailableError):
            await store.add_event(event, context_of(event))
        await store_when_possible(store, event)
    assert await counted(own_postgres) == 1
