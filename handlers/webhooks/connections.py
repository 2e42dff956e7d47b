"""Connections to endpoints, made only to addresses that the endpoint's AddressPolicy allows.

The address that is checked is the one that is connected to. Names are resolved once for a connection, and what the
answer has of refused addresses is left out; aiohttp then races over the rest. Each socket is checked again by the
address that it is about to be connected to, so that an address in the URL, which no resolver sees, passes no other way.
"""

import socket
from typing import Any, Final

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from maskline.handlers.webhooks.addresses import AddressPolicy
from maskline.handlers.webhooks.endpoint import Endpoint

CONNECT_TIMEOUT_S: Final = 5.0
"""For one address: a name has several, and a firewall that drops packets must not use up the whole time limit."""
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


def open_session(endpoint: Endpoint, resolver: AbstractResolver | None = None) -> ClientSession:
    """An HTTP session for one endpoint, to be closed after use. `resolver`: by default the system's.

    Each endpoint has one of its own: connections that one endpoint may use are then never lent to another, and one that
    hangs holds up no other. No proxy of the environment is used: it would connect to addresses that nobody checks.
    """
    policy = endpoint.policy

    def checked_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if (refusal := policy.refusal(str(address[0]))) is not None:
            raise AddressRefusedError(refusal)
        return socket.socket(family, kind, protocol)

    connector = TCPConnector(
        limit=0,  # as many as attempts run at once: `concurrency` of the endpoint, or MASKLINE_CONCURRENCY
        ssl=True if endpoint.tls is None else endpoint.tls,
        resolver=CheckedResolver(policy, resolver or ThreadedResolver()),
        socket_factory=checked_socket,
        keepalive_timeout=KEEPALIVE_S,
    )
    return ClientSession(
        connector=connector,
        timeout=ClientTimeout(total=endpoint.timeout_ms / 1000, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,  # a few bytes may unpack to gigabytes
        trust_env=False,
    )
