"""The base of the spool over HTTP: aiohttp `web.Server`, one SQLite, a commit and so an fsync for each callback."""

import asyncio
import os
import sqlite3

from aiohttp import web

from bench.ingest.plain import PORT, run

database = sqlite3.connect(os.environ.get("BENCH_SQLITE", ":memory:"), isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE IF NOT EXISTS callbacks (id INTEGER PRIMARY KEY, value BLOB NOT NULL)")


async def callbacks(request: web.BaseRequest) -> web.Response:
    # On the loop: threads would cost more than they save, as only one can write.
    database.execute("INSERT INTO callbacks (value) VALUES (?)", (await request.read(),))
    return web.Response()


async def main() -> None:
    server = web.Server(callbacks, access_log=None)
    await asyncio.get_running_loop().create_server(server, "127.0.0.1", PORT)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(main())
