"""The start of `handlers.postgres`: migrations by many workers, rights, versions, URLs, and durable sessions."""

import asyncio
import importlib
import re
import struct
import sys

import asyncpg
import pytest
from database_kit import store_of
from postgres_kit import SUPERUSER
from servers import free_port
from structlog.testing import capture_logs

from maskline.handlers.database.connection import LOCK_TIMEOUT_S, STATEMENT_TIMEOUT_S, connect
from maskline.handlers.database.migrator import Migration, known_migrations, migrate
from maskline.handlers.database.store import open_store
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings


async def start(url, **settings):
    async with open_store(Settings(postgres_url=url, **settings)):
        pass


async def test_many_workers_that_start_at_once_migrate_once(shared_postgres, database, sql):
    connections = [await connect(shared_postgres.url(database)) for _ in range(8)]
    counts = await asyncio.gather(*(migrate(one, "maskline") for one in connections))
    assert sum(counts) == len(known_migrations())
    assert await sql.fetchval("SELECT array_agg(version ORDER BY version) FROM schema_migrations") == [
        one.version for one in known_migrations()
    ]
    assert await migrate(connections[0], "maskline") == 0
    for one in connections:
        await one.close()


def test_migrations_are_numbered_without_gaps():
    assert [one.version for one in known_migrations()] == [*range(1, len(known_migrations()) + 1)]


async def test_a_migration_that_fails_half_way_leaves_nothing_behind(shared_postgres, database, sql):
    connection = await connect(shared_postgres.url(database))
    first = Migration(1, "0001_good.sql", "CREATE TABLE good (n int)")
    bad = Migration(2, "0002_bad.sql", "CREATE TABLE half (n int); INSERT INTO half VALUES ('no number')")
    with pytest.raises(ConfigError, match="0002_bad.sql failed: InvalidTextRepresentation") as caught:
        await migrate(connection, "maskline", [first, bad])
    assert "\n" not in str(caught.value)
    assert await sql.fetchval("SELECT to_regclass('half')") is None
    assert await sql.fetchval("SELECT max(version) FROM schema_migrations") == 1
    mended = bad._replace(sql="CREATE TABLE half (n int)")
    assert await migrate(connection, "maskline", [first, mended]) == 1
    await connection.close()


async def test_a_schema_of_a_newer_release_stops_the_start(shared_postgres, database, sql):
    url = shared_postgres.url(database)
    await start(url)
    await sql.execute("INSERT INTO schema_migrations (version, name) VALUES (99, 'later')")
    with pytest.raises(ConfigError, match="at version 99, and this release knows"):
        await start(url)


@pytest.fixture
async def role(shared_postgres, database):
    """A role without any rights."""
    admin = await shared_postgres.connect(database)
    name = f"role_of_{database}"
    await admin.execute(f"CREATE ROLE {name} LOGIN")
    yield name, admin
    await admin.execute(f"REASSIGN OWNED BY {name} TO {SUPERUSER}; DROP OWNED BY {name}; DROP ROLE {name}")
    await admin.close()


async def test_a_role_without_rights_is_told_which_it_lacks_until_it_has_all(shared_postgres, database, role):
    name, admin = role
    url = shared_postgres.url(database, name)
    with pytest.raises(
        ConfigError, match=f"may not create the schema maskline: (CREATE SCHEMA .* AUTHORIZATION {name})"
    ):
        await start(url)
    await admin.execute("CREATE SCHEMA maskline")
    with pytest.raises(
        ConfigError, match="may not create tables in the schema maskline: (GRANT USAGE, CREATE .*)"
    ) as got:
        await start(url)
    await admin.execute(str(got.value).partition("maskline: ")[2])  # as the line says
    await start(url)
    await admin.execute(f"REASSIGN OWNED BY {name} TO {SUPERUSER}")
    with pytest.raises(
        ConfigError, match=f"does not own the tables in the schema maskline: GRANT {SUPERUSER} TO {name}"
    ):
        await start(url)


async def test_what_only_an_operator_can_mend_stops_the_start_with_one_line(shared_postgres):
    for url, reason in (
        (shared_postgres.url("nowhere"), 'database "nowhere" does not exist'),
        (shared_postgres.url(user="nobody"), 'role "nobody" does not exist'),
        (f"{shared_postgres.url()}?target_session_attrs=anything", "target_session_attrs"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            await start(url)
        assert "\n" not in str(caught.value)


def test_the_module_is_not_loaded_without_a_url(monkeypatch):
    monkeypatch.delenv("MASKLINE_POSTGRES_URL", raising=False)
    monkeypatch.delitem(sys.modules, "maskline.handlers.postgres", raising=False)
    with pytest.raises(ConfigError, match=r"MASKLINE_POSTGRES_URL is not set"):
        importlib.import_module("maskline.handlers.postgres")


async def test_a_worker_starts_while_postgres_is_away_and_uses_the_first_host_that_takes_writes(
    shared_postgres, database, sql
):
    away = f"127.0.0.1:{free_port()}"
    with capture_logs() as logs:
        await start(f"postgresql://{SUPERUSER}@{away}/x")
    assert next(line["event"] for line in logs) == "postgres unavailable at start"
    url = f"postgresql://{SUPERUSER}@{away},127.0.0.1:{shared_postgres.port}/{database}"
    await start(url)
    assert await sql.fetchval("SELECT count(*) FROM events") == 0
    # A host that takes no writes is passed over, like a primary that has become a standby.
    await sql.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises((asyncpg.InternalClientError, asyncpg.PostgresError)):
        await connect(url)
    await asyncio.sleep(0)  # what was refused is closed


async def test_commits_are_on_the_disk_whatever_the_role_has_set(shared_postgres, database):
    admin = await shared_postgres.connect(database)
    for given, effective in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        await admin.execute(f"ALTER DATABASE {database} SET synchronous_commit = {given}")
        connection = await connect(shared_postgres.url(database))
        assert await connection.fetchval("SHOW synchronous_commit") == effective
        assert await connection.fetchval("SHOW timezone") == "UTC"
        assert await connection.fetchval("SHOW statement_timeout") == f"{STATEMENT_TIMEOUT_S:g}s"
        assert await connection.fetchval("SHOW lock_timeout") == f"{LOCK_TIMEOUT_S:g}s"
        await connection.close()
    await admin.close()


@pytest.mark.parametrize("secret", ["qx/zw", "qx#zw", "qx?zw", "[qxzw]", "qx@zw"])
async def test_a_password_that_makes_the_url_unreadable_is_never_repeated(secret):
    said = []
    with capture_logs() as logs:
        try:
            await start(f"postgresql://{SUPERUSER}:{secret}@127.0.0.1:{free_port()}/x")
        except ConfigError as error:
            said.append(str(error))
    # What follows an '@' is a host, which is nowhere.
    assert ["cannot be read: " in text for text in said] == [True] * ("@" not in secret)
    text = f"{said} {logs}"
    assert not re.search("qx|zw", text)


async def test_a_connection_begins_with_nothing_that_pgbouncer_refuses():
    began = asyncio.get_running_loop().create_future()

    async def pooler(reader, writer):
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        packet = await reader.readexactly(length - 4)
        if length == 8:  # whether it speaks TLS
            writer.write(b"N")
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            packet = await reader.readexactly(length - 4)
        began.set_result(packet[4:].split(b"\0")[0:-2:2])
        writer.close()

    async with await asyncio.start_server(pooler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await connect(f"postgresql://{SUPERUSER}@127.0.0.1:{port}/x")
        # Those that PgBouncer hands on, whatever its ignore_startup_parameters.
        known = {b"user", b"database", b"client_encoding", b"application_name", b"timezone"}
        assert {name.lower() for name in await began} <= known


async def test_the_schema_has_the_name_that_is_set(shared_postgres, database, sql):
    await start(shared_postgres.url(database), postgres_schema="rides")
    assert await sql.fetchval(
        "SELECT to_regclass('rides.events') IS NOT NULL AND to_regnamespace('maskline') IS NULL"
    )
    async with store_of(shared_postgres, database, postgres_schema="other"):
        pass  # two in one database
    assert await sql.fetchval("SELECT to_regclass('other.gaps') IS NOT NULL")
