import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from postgres_kit import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that tests share, one after the other: see `database`; never stop it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mortal_postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def own_postgres(mortal_postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL to kill and restart, which no other test uses meanwhile: it runs, and is empty."""
    if mortal_postgres.process is None:
        mortal_postgres.start()
    asyncio.run(mortal_postgres.clear())
    return mortal_postgres


@pytest.fixture
async def database(shared_postgres: PostgresServer) -> AsyncIterator[str]:
    """The name of its database, which is empty."""
    await shared_postgres.clear()
    yield "postgres"
    await shared_postgres.clear()


@pytest.fixture
async def sql(shared_postgres: PostgresServer, database: str) -> Any:
    """A connection to it, its search_path the schema of the store."""
    connection = await shared_postgres.connect(database)
    await connection.execute("SET search_path TO maskline")
    yield connection
    await connection.close()
