"""Brings the schema to this release's version: the numbered files in `migrations/`, in their order.

- Each migration is a transaction of its own, with its row in `schema_migrations`: one that fails leaves nothing behind.
- An advisory lock lets one worker migrate; the others wait, and then find nothing left to do.
- A schema that is newer than this release is left alone, and the worker does not start.
- Migrations add: the workers of the release before go on while the new ones start.
"""

import asyncio
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

import asyncpg

from maskline.handlers.database.connection import Connection, error_text
from maskline.handlers.database.verdicts import Verdict, verdict_of
from maskline.schemas.errors import ConfigError

MIGRATION_TIMEOUT_S: Final = 60.0
"""For all of them, and for waiting while another worker migrates. Ours take milliseconds."""
_FILE_NAME: Final = re.compile(r"(\d{4})_\w+\.sql")

_SETTINGS: Final = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $1, true)"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('maskline migrations ' || $1, 0))"
# Not by to_regnamespace: that goes by what the session remembers, as of before it waited for the lock. Nor by IF NOT
# EXISTS: that takes the right to create a schema even where there is one.
_HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
_HAS_VERSIONS: Final = "SELECT to_regclass($1) IS NOT NULL"
_VERSION: Final = "SELECT coalesce(max(version), 0) FROM schema_migrations"
_VERSIONS_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    applied_by text NOT NULL DEFAULT current_user
)
"""
_RIGHTS: Final = """
SELECT current_user AS role,
       current_database() AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       schema.oid IS NOT NULL AS has_schema,
       coalesce(has_schema_privilege(schema.oid, 'USAGE') AND has_schema_privilege(schema.oid, 'CREATE'), false)
           AS may_create_tables,
       pg_get_userbyid(events.relowner)::text AS owner,
       coalesce(pg_has_role(events.relowner, 'USAGE'), true) AS owns_tables
FROM (VALUES ($1)) AS asked (name)
LEFT JOIN pg_namespace AS schema ON schema.nspname = asked.name
LEFT JOIN pg_class AS events ON events.relnamespace = schema.oid AND events.relname = 'events'
"""


class Migration(NamedTuple):
    """A numbered file."""

    version: int
    name: str
    sql: str


class Rights(NamedTuple):
    """What the role may do, as PostgreSQL says."""

    role: str
    database: str
    may_create_schema: bool
    has_schema: bool
    may_create_tables: bool
    owner: str | None
    owns_tables: bool


def known_migrations() -> list[Migration]:
    """The migrations of this release, by version."""
    folder = files("maskline.handlers.database").joinpath("migrations")
    return sorted(
        Migration(int(match[1]), file.name, file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if (match := _FILE_NAME.fullmatch(file.name))
    )


def missing_right(rights: Rights, schema: str) -> str | None:
    """In one line which right the role lacks, and the statement that gives it; None if it has all."""
    if not rights.has_schema and not rights.may_create_schema:
        return (
            f"the role {rights.role} may not create the schema {schema}: "
            f"CREATE SCHEMA {schema} AUTHORIZATION {rights.role}"
        )
    if rights.has_schema and not rights.may_create_tables:
        return (
            f"the role {rights.role} may not create tables in the schema {schema}: "
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {rights.role}"
        )
    if not rights.owns_tables:  # only an owner adds and drops partitions
        return (
            f"the role {rights.role} does not own the tables in the schema {schema}: "
            f"GRANT {rights.owner} TO {rights.role}"
        )
    return None


async def migrate(connection: Connection, schema: str, migrations: Sequence[Migration] = ()) -> int:
    """Apply the migrations (by default this release's) that the schema lacks; returns how many.

    Raises ConfigError, one line, where the role lacks a right, where the schema is newer than this release, or where a
    migration fails for a reason that no retry mends. Other errors are asyncpg's.
    """
    known = list(migrations) or known_migrations()
    rights = Rights(*await connection.fetchrow(_RIGHTS, schema))
    if (lack := missing_right(rights, schema)) is not None:
        raise ConfigError(f"PostgreSQL, database {rights.database}: {lack}")
    count = 0
    async with asyncio.timeout(MIGRATION_TIMEOUT_S):
        while await _apply_next(connection, schema, known):
            count += 1
    return count


async def _apply_next(connection: Connection, schema: str, known: Sequence[Migration]) -> bool:
    """Apply the next migration in a transaction; False if there is none."""
    if await _version(connection, schema) == known[-1].version:
        return False
    async with connection.transaction():
        await connection.execute(_SETTINGS, f"{MIGRATION_TIMEOUT_S:g}s")
        await connection.execute(_LOCK, schema)
        if not await connection.fetchval(_HAS_SCHEMA, schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.execute(f"SET LOCAL search_path TO {schema}")
        await connection.execute(_VERSIONS_TABLE)
        version = await connection.fetchval(_VERSION)
        if version > known[-1].version:
            raise ConfigError(
                f"PostgreSQL: the schema {schema} is at version {version}, and this release knows "
                f"{known[-1].version} at most: start a newer release"
            )
        following = next((one for one in known if one.version > version), None)
        if following is None:
            return False  # another worker has applied it meanwhile
        try:
            await connection.execute(following.sql)
        except asyncpg.PostgresError as error:
            if verdict_of(error.sqlstate) is Verdict.AWAY:
                raise
            raise ConfigError(
                f"PostgreSQL: the migration {following.name} failed: {error_text(error)}"
            ) from error
        await connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", following.version, following.name
        )
    return True


async def _version(connection: Connection, schema: str) -> int:
    """The version of the schema, read without a lock: nearly every start finds nothing to do. 0: there is none."""
    if not await connection.fetchval(_HAS_VERSIONS, f"{schema}.schema_migrations"):
        return 0
    version: int = await connection.fetchval(
        _VERSION.replace("schema_migrations", f"{schema}.schema_migrations")
    )
    return version
