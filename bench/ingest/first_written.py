"""aiohttp and redis-py as one would first write it: parse, verify, one XADD, 200.

It stores what `bench.worker.handwritten` reads.
"""

import time
from urllib.parse import parse_qsl

from aiohttp import web
from redis.asyncio import Redis

from bench.ingest.plain import PORT, REDIS_URL, run, verified
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback

redis = Redis.from_url(REDIS_URL)


async def callbacks(request: web.Request) -> web.Response:
    body = await request.read()
    if not verified(request.headers, parse_qsl(body.decode(), keep_blank_values=True)):
        return web.Response(status=403)
    callback = RawCallback(
        "POST", b"", request.headers.get("Content-Type", ""), body, time.time_ns() // 1_000_000, ""
    )
    await redis.xadd("callbacks", {CALLBACK_FIELD: encode_callback(callback)})
    return web.Response()


async def main() -> None:
    app = web.Application()
    app.router.add_post("/callbacks", callbacks)
    await web._run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)  # noqa: SLF001 - run_app, on our loop


if __name__ == "__main__":
    run(main())
