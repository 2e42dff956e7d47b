"""Connections to endpoints, made only to addresses that the endpoint's AddressPolicy allows.

The address that is checked is the one that is connected to. Names are resolved once for a connection, and what the
answer has of refused addresses is left out; aiohttp then races over the rest. Each socket is checked again by the
address that it is about to be connected to, so that an address in the URL, which no resolver sees, passes no other way.
"""

import asyncio
import socket
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from aiohttp import (
    ClientSession,
    DummyCookieJar,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from maskline.handlers.webhooks.addresses import AddressPolicy
from maskline.handlers.webhooks.endpoint import Endpoint

CONNECT_TIMEOUT_S: Final = 5.0
"""To the first of a name's addresses that answers: a firewall that drops packets says so before the time limit does."""
KEEPALIVE_S: Final = 60.0
"""How long an idle connection is kept. One that the receiver closes earlier is left at once."""


class AddressRefusedError(OSError):
    """An address that the endpoint's policy refuses. Its text names address and reason."""


class CheckedResolver(AbstractResolver):
    """Resolves names to the addresses that a policy allows."""

    def __init__(self, policy: AddressPolicy, resolver: AbstractResolver) -> None:
        self._policy = policy
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The allowed addresses of a name. Raises AddressRefusedError if it has none that is allowed."""
        found = await self._resolver.resolve(host, port, family)
        refusals = [self._policy.refusal(result["host"]) for result in found]
        allowed = [result for result, refusal in zip(found, refusals, strict=True) if refusal is None]
        if not allowed:
            reason = next((refusal for refusal in refusals if refusal is not None), "it has no address")
            raise AddressRefusedError(f"{host}: {reason}")
        return allowed

    async def close(self) -> None:
        """Close the resolver behind it."""
        await self._resolver.close()


class Sending:
    """One request, as far as its connection is concerned."""

    __slots__ = ("connected",)

    def __init__(self) -> None:
        self.connected = False
        """A connection was begun for it; otherwise it goes over one that was idle."""


SENDING: Final = ContextVar[Sending]("SENDING")
"""The request that runs in this context. aiohttp's own way to tell (TraceConfig) costs a tenth of a request."""


class _HeadFirst(ResponseHandler):
    """Reads the head of an answer before what follows it.

    aiohttp reads both at once if they arrive together, and takes an answer of which the rest is wrong for none: a body
    after 204, where there can be none, or a chunk that cannot be read. Whether they do is chance.
    """

    def data_received(self, data: bytes) -> None:
        head, end, rest = data.partition(b"\r\n\r\n")
        super().data_received(head + end)
        if rest:
            super().data_received(rest)


class _Connector(TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        make: Any = partial(_HeadFirst, loop=asyncio.get_running_loop())
        self._factory = make


def open_session(endpoint: Endpoint, resolver: AbstractResolver | None = None) -> ClientSession:
    """An HTTP session for one endpoint, to be closed after use. `resolver`: by default the system's.

    Each endpoint has one of its own: connections that one endpoint may use are then never lent to another, and one that
    hangs holds up no other. No proxy of the environment is used: it would connect to addresses that nobody checks. A
    request needs its SENDING, and a time limit.
    """
    policy = endpoint.policy

    def checked_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if (refusal := policy.refusal(str(address[0]))) is not None:
            raise AddressRefusedError(refusal)
        SENDING.get().connected = True
        return socket.socket(family, kind, protocol)

    connector = _Connector(
        limit=0,  # as many as attempts run at once: `concurrency` of the endpoint, or MASKLINE_CONCURRENCY
        ssl=True if endpoint.tls is None else endpoint.tls,
        resolver=CheckedResolver(policy, resolver or ThreadedResolver()),
        socket_factory=checked_socket,
        keepalive_timeout=KEEPALIVE_S,
    )
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,  # a few bytes may unpack to gigabytes
        trust_env=False,
    )
