"""The base of the spool: one SQLite, WAL and FULL, a commit and so an fsync for each callback."""

import asyncio
import sqlite3

from bench.ingest.plain import run
from bench.spool.clients import DIRECTORY, drive


async def main() -> None:
    database = sqlite3.connect(f"{DIRECTORY}/each.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute(
        "CREATE TABLE callbacks (id INTEGER PRIMARY KEY, route INTEGER NOT NULL, value BLOB NOT NULL)"
    )

    async def store(partition_hash: int, value: bytes) -> None:
        # On the loop: threads would cost more than they save, as only one can write.
        database.execute("INSERT INTO callbacks (route, value) VALUES (?, ?)", (partition_hash, value))
        await asyncio.sleep(0)  # the next client

    await drive(store)
    database.close()


if __name__ == "__main__":
    run(main())
