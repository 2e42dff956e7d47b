"""The base of ingest: an aiohttp `web.Server` that answers 200 and does nothing."""

import asyncio

from aiohttp import web

from bench.ingest.plain import PORT, run


async def answer(_: web.BaseRequest) -> web.Response:
    return web.Response()


async def main() -> None:
    server = web.Server(answer, access_log=None)
    await asyncio.get_running_loop().create_server(server, "127.0.0.1", PORT)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(main())
