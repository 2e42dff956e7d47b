"""A receiver of webhooks, a real HTTP server that verifies with `standardwebhooks`, and files with endpoints for it."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from aiohttp import web
from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of 32 bytes for tests..").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"the secret that follows it......").decode()


class Received(NamedTuple):
    """One request, verified."""

    headers: Mapping[str, str]
    message: dict[str, Any]
    peer_port: int
    """Of the sender's connection: the same for requests on one connection."""


def ok(_: Received) -> web.Response:
    return web.Response(status=204)


class Receiver:
    """An endpoint of webhooks. `answer` may be replaced while it runs."""

    def __init__(self, secret: str = SECRET) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], web.StreamResponse | Awaitable[web.StreamResponse]] = ok
        self.under_way = 0
        self.under_way_max = 0
        self.port = 0
        self._verifier = Webhook(secret)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/masking?key=of-the-url"

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        headers = dict(request.headers)
        message = self._verifier.verify(body, headers)  # raises, and the sender gets a 500
        peer = request.transport.get_extra_info("peername")  # type: ignore[union-attr]
        received = Received({name.lower(): value for name, value in headers.items()}, message, peer[1])
        self.received.append(received)
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            answer = self.answer(received)
            return await answer if isinstance(answer, Awaitable) else answer
        finally:
            self.under_way -= 1


@asynccontextmanager
async def receiving(secret: str = SECRET, ssl: Any = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver(secret)
    app = web.Application()
    app.router.add_post("/hooks/masking", receiver._take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that says what `talk` says, which need not be HTTP. Yields its port."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def endpoint(url: str | None, **keys: Any) -> dict[str, Any]:
    """A table `[[endpoint]]` for a receiver on this machine."""
    table = {"name": "shop", "url": url, "secrets": [SECRET], "allow_private": ["127.0.0.0/8"]} | keys
    return {key: value for key, value in table.items() if value is not None}


def write_config(file: Path, *tables: Mapping[str, Any]) -> Path:
    lines = [
        line
        for table in tables
        for line in ("[[endpoint]]", *(f"{key} = {_toml(value)}" for key, value in table.items()))
    ]
    file.write_text("\n".join(lines))
    return file


def _toml(value: Any) -> str:
    """A value as in TOML: that of JSON, but for tables."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@contextmanager
def receiving_in_thread() -> Iterator[Receiver]:
    """A receiver with an event loop of its own, for tests that start worker processes and wait for them."""
    started, stopping = Queue[Receiver](), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with receiving() as receiver:
            started.put(receiver)
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield started.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(10)
        loop.close()
