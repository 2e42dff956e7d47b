from collections.abc import Iterator
from typing import Any

import pytest
from postgres_kit import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that tests share, each with a `database` of its own; never stop it."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to kill and restart."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def database(shared_postgres: PostgresServer) -> str:
    """The name of an empty database."""
    return await shared_postgres.create_database()


@pytest.fixture
async def sql(shared_postgres: PostgresServer, database: str) -> Any:
    """A connection to it, its search_path the schema of the store."""
    connection = await shared_postgres.connect(database)
    await connection.execute("SET search_path TO maskline")
    yield connection
    await connection.close()
