"""Signed requests as bytes, and a client that reads what a node answers to them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import msgspec
from servers import SETTLE_S, poll_pause_s

from maskline.ingest.auth.signatures import sign_v3
from maskline.ingest.node import IngestNode
from maskline.schemas.callback import RawCallback, decode_callback
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import Parameters
from maskline.schemas.settings import Settings

MAIN = "MAXXXXXXXXXXXXXXXXXX"
SUB = "SAXXXXXXXXXXXXXXXXXX"
MAIN_TOKEN = "main-account-token"
SUB_TOKEN = "subaccount-token"
FORM = "application/x-www-form-urlencoded"
NONCE = "05429567804466091622"
EXCHANGE_TIMEOUT_S = 60.0
SPOOL_DIR = Path("set-by-conftest")

PAIRS = [
    ("EventName", "SessionSecondPartyHangup"),
    ("SessionUUID", "0c9b1a6e-5f3c-4a7e-9d53-1f6f2d1c0001"),
    ("SequenceNumber", "3"),
    ("From", "+14155550123"),
    ("Amount", "0.00850"),
]


class Request(NamedTuple):
    """A request in parts, so that a test can say only what is odd about it."""

    method: str = "POST"
    target: str = "/callbacks"
    host: str = "hooks.example.com"
    body: bytes | None = None
    """None: PAIRS as a form in a POST, nothing else."""
    pairs: list[tuple[str, str]] | None = None
    """What is signed as the body, where that is not what `body` reads as."""
    query: list[tuple[str, str]] | None = None
    members: dict[str, Any] | None = None
    headers: dict[str, str | None] | None = None
    """Added or, where None, left out."""
    token: str = MAIN_TOKEN
    version: str = "HTTP/1.1"
    base: str = ""

    def encode(self) -> bytes:
        target, query = self.target, self.query or []
        if query:
            target += "?" + urlencode(query)
        pairs = self.pairs
        if pairs is None:
            pairs = PAIRS if self.method == "POST" and self.body is None and self.members is None else []
        body = self.body
        if body is None:
            body = (
                json.dumps(self.members).encode() if self.members is not None else urlencode(pairs).encode()
            )
        base = self.base or f"http://{self.host}{self.target.partition('?')[0]}"
        signed = Parameters(query, pairs if self.members is None else [], self.members)
        headers: dict[str, str | None] = {
            "Host": self.host,
            "X-Plivo-Signature-V3": sign_v3(self.token, self.method, base, signed, NONCE),
            "X-Plivo-Signature-V3-Nonce": NONCE,
        }
        if body or self.method == "POST":
            headers["Content-Type"] = FORM if self.members is None else "application/json"
            headers["Content-Length"] = str(len(body))
        headers |= self.headers or {}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
        return f"{self.method} {target} {self.version}\r\n{''.join(lines)}\r\n".encode() + body


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(msgspec.json.decode(self.body)["error"])


class Client:
    """One connection to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self, method: str = "POST") -> Response:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
            return Response(int(first.split()[1]), headers, await self.reader.readexactly(length))

    async def ask(self, request: bytes, method: str = "POST") -> Response:
        self.send(request)
        return await self.response(method)

    async def ended(self) -> bool:
        """Whether the node closes the connection, having sent nothing more."""
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            return await self.reader.read(1) == b""


async def ask(port: int, request: Request | bytes) -> Response:
    """One request on a connection of its own."""
    async with await Client.connect(port) as client:
        if isinstance(request, bytes):
            return await client.ask(request)
        return await client.ask(request.encode(), request.method)


def node_settings(redis_url: str, namespace: str, **changes: Any) -> Settings:
    values = {
        "redis_url": redis_url,
        "namespace": namespace,
        "partitions": 4,
        "host": "127.0.0.1",
        "port": 0,
        "admin_port": 0,
        "auth_tokens": ((MAIN, MAIN_TOKEN), (SUB, SUB_TOKEN)),
        "log_format": "json",
        "spool_dir": SPOOL_DIR,
    }
    return Settings(**(values | changes))


@asynccontextmanager
async def running(redis_url: str, namespace: str, **changes: Any) -> AsyncIterator[IngestNode]:
    node = IngestNode(node_settings(redis_url, namespace, **changes))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def stored(client: Any, settings: Settings) -> list[RawCallback]:
    """Everything that lies in the streams of a namespace."""
    keys = Keys(settings.namespace)
    return [
        decode_callback(fields[b"c"])
        for partition in range(settings.partitions)
        for _, fields in client.xrange(keys.callbacks(partition))
    ]


async def until(condition: Callable[[], Any], *, within_s: float = SETTLE_S) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(within_s):
        while True:
            asked_at = time.thread_time()
            if condition():
                return
            await asyncio.sleep(poll_pause_s(asked_at, 0.005))
