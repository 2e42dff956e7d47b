"""Worker processes and PostgreSQL are killed under load: every event has its row, and no event has two.

POSTGRES_KILLS=100 makes it long.
"""

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from postgres_kit import PostgresServer
from process_kit import PATIENCE_S, Fleet, load
from servers import wait_until

KILLS = int(os.environ.get("POSTGRES_KILLS", "1"))
"""Of a worker each, and of PostgreSQL."""
SESSIONS, EVENTS = 150, 10

pytestmark = pytest.mark.server


def settings_of(server: PostgresServer, **more: Any) -> dict[str, Any]:
    return {
        "handlers": "maskline.handlers.postgres",
        "postgres_url": server.url(),
        "gap_timeout_ms": 600_000,
    } | more


def asked(server: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    """The rows of an answer; none while there is no server, or no table yet."""

    async def ask() -> list[tuple[Any, ...]]:
        connection = await server.connect()
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def stored(server: PostgresServer) -> int:
    return int(asked(server, "SELECT count(*) FROM maskline.events")[0][0])


def test_after_kills_of_workers_and_of_postgres_every_event_has_one_row(
    crew: Fleet, own_postgres: PostgresServer
):
    settings = settings_of(own_postgres)
    rng = random.Random(KILLS)
    workers = [crew.start(**settings), crew.launch(**settings)]
    sent: list[tuple[str, int]] = []
    for kill in range(KILLS):
        for victim in ("worker", "postgres"):
            before = stored(own_postgres)
            events = load(SESSIONS, EVENTS, name=f"{victim}{kill}-", seed=kill)
            sent += events
            crew.put_all(events)
            wait_until(lambda before=before: stored(own_postgres) > before, within_s=PATIENCE_S, what="rows")
            if victim == "postgres":
                own_postgres.kill()
                own_postgres.start()
            else:
                place = rng.randrange(len(workers))
                workers[place].kill()
                workers[place] = crew.launch(**settings)
    wait_until(
        lambda: stored(own_postgres) >= len(sent), within_s=2 * PATIENCE_S, what="every event to be stored"
    )
    crew.until_drained()
    for worker in workers:
        assert worker.until_started().terminate() == 0
    rows = Counter(asked(own_postgres, "SELECT session_uuid, sequence_number FROM maskline.events"))
    assert rows == Counter(sent)
    assert crew.dead_letters() == []


def test_a_call_that_is_over_has_its_row(crew: Fleet, shared_postgres: PostgresServer, database: str):
    modules = "maskline.handlers.call_summary,maskline.handlers.postgres"
    worker = crew.start(
        **settings_of(shared_postgres, handlers=modules, postgres_url=shared_postgres.url(database))
    )
    names = (
        "SessionFirstPartyAnswer",
        "SessionSecondPartyAnswer",
        "SessionSecondPartyHangup",
        "SessionPartiesHangup",
    )
    for number, name in enumerate(names, 1):
        crew.put("s1", number, EventName=name, Amount="0.017")

    async def calls() -> list[Any]:
        connection = await shared_postgres.connect(database)
        try:
            return await connection.fetch(
                "SELECT call_key, answered, amount::text, first_party_number FROM maskline.call_summaries"
            )
        finally:
            await connection.close()

    (call,) = wait_until(lambda: asyncio.run(calls()), within_s=PATIENCE_S, what="the call")
    assert (call["call_key"], call["answered"], call["amount"]) == ("s1:call:1", True, "0.017")
    assert worker.terminate() == 0
