"""The server that a handler calls in a chaos run: it takes one line a connection, and goes away when asked to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal

Way = Literal["refuses", "errs", "hangs"]
"""How it is away: connections are refused, answered with an error, or not answered."""
WAYS: tuple[Way, ...] = ("refuses", "errs", "hangs")


class Downstream:
    """Listens on `port`. `taken` counts what it has taken, `refused` what it was asked while it was away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.way: Way | None = None
        """None while it is well."""
        self.taken = 0
        self.refused = 0
        self._server: asyncio.Server | None = None
        self._back = asyncio.Event()

    async def start(self) -> None:
        self._back.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._back.set()
        if self._server is not None:
            self._server.close()
            self._server = None

    @contextlib.asynccontextmanager
    async def away(self, way: Way) -> AsyncIterator[None]:
        """Away in this way until the block is left."""
        self.way = way
        self._back.clear()
        if way == "refuses":
            await self.stop()
        try:
            yield
        finally:
            self.way = None
            self._back.set()
            if way == "refuses":
                await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if await reader.readline():
                if self.way == "hangs":
                    self.refused += 1
                    await self._back.wait()
                elif self.way is not None:
                    self.refused += 1
                    writer.write(b"no\n")
                else:
                    self.taken += 1
                    writer.write(b"taken\n")
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def downstream(port: Callable[[], int]) -> AsyncIterator[Downstream]:
    """A server on a port that `port` gives; stopped in the end."""
    it = Downstream(port())
    await it.start()
    try:
        yield it
    finally:
        await it.stop()
