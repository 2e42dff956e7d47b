"""Sends webhooks: one POST for each attempt, and the part of the answer that matters.

The status is the answer: once it is there, nothing that its body does changes what it means. Of the body at most
ANSWER_BYTES_MAX are read, for at most ANSWER_BODY_S. If it ends within both, the connection is used again, else it is
closed.

A connection that a receiver closes while it was idle may be used a moment before that is known here. Such a request
is sent again at once, over another connection: that is no failure of the receiver's.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, Self

from aiohttp import (
    ClientConnectionError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    ConnectionTimeoutError,
    ServerDisconnectedError,
)
from aiohttp.abc import AbstractResolver

from maskline.handlers.webhooks.answers import Answer
from maskline.handlers.webhooks.connections import (
    CONNECT_TIMEOUT_S,
    SENDING,
    AddressRefusedError,
    Sending,
    open_session,
)
from maskline.handlers.webhooks.endpoint import Endpoint
from maskline.handlers.webhooks.headers import USER_AGENT
from maskline.schemas.errors import MasklineError

ANSWER_BYTES_MAX: Final = 65_536
ANSWER_BODY_S: Final = 1.0
"""A body that drips in holds up the event for no longer."""
STALE_MAX: Final = 3
"""Connections in a row that may turn out to be closed: a receiver that closes one mostly closes others with it."""
STALE_WITHIN_S: Final = 1.0
"""So soon a request over a closed connection fails. One that fails later was under way at the receiver."""


class NotDeliveredError(MasklineError):
    """No answer came: no connection, no certificate that can be trusted, no time left. Another try may succeed."""


class WebhookClient:
    """The HTTP sessions of all endpoints. An async context manager.

    `resolver`: resolves the names of all endpoints; by default the system's.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...], resolver: AbstractResolver | None = None) -> None:
        self._endpoints = endpoints
        self._resolver = resolver
        self._sessions: dict[str, ClientSession] = {}

    async def __aenter__(self) -> Self:
        self._sessions = {it.name: open_session(it, self._resolver) for it in self._endpoints}
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions.values():
            await session.close()

    async def post(self, endpoint: Endpoint, body: str, headers: Mapping[str, str]) -> Answer:
        """Send one request. Takes at most the endpoint's `timeout_ms` and ANSWER_BODY_S.

        Raises NotDeliveredError, one line that names the endpoint, if there is no answer.
        """
        sent = {
            **endpoint.headers,
            **headers,
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
        }
        try:
            response = await self._send(endpoint, body.encode(), sent)
        except (ClientError, TimeoutError, OSError) as error:
            raise NotDeliveredError(f"{endpoint.name}: {_failure_text(error, endpoint)}") from None
        try:
            return Answer(
                response.status,
                response.headers.get("Retry-After"),
                response.headers.get("Location"),
                await _read_start(response),
            )
        finally:
            response.close()  # where the body has ended, its connection was given back before

    async def _send(self, endpoint: Endpoint, body: bytes, headers: Mapping[str, str]) -> ClientResponse:
        """The answer as soon as its head is there. Raises what aiohttp raises."""
        post, clock = self._sessions[endpoint.name].post, asyncio.get_running_loop().time
        began, spent_s = clock(), 0.0
        for stale in range(STALE_MAX + 1):
            sending = Sending()
            SENDING.set(sending)
            left = ClientTimeout(total=endpoint.timeout_ms / 1000 - spent_s, sock_connect=CONNECT_TIMEOUT_S)
            try:
                return await post(
                    endpoint.url, data=body, headers=headers, allow_redirects=False, timeout=left
                )
            except (ClientOSError, ServerDisconnectedError):
                spent_s = clock() - began
                if sending.connected or spent_s > STALE_WITHIN_S or stale == STALE_MAX:
                    raise
        raise AssertionError("the last try returns or raises")


async def _read_start(response: ClientResponse) -> bytes:
    """The body as far as it may be read; all of it, as a rule."""
    if response.content.at_eof():  # most have none, and a time limit costs more than the rest
        return b""
    start = bytearray()
    try:
        async with asyncio.timeout(ANSWER_BODY_S):
            while len(start) < ANSWER_BYTES_MAX and not response.content.at_eof():
                start += await response.content.read(ANSWER_BYTES_MAX - len(start))
    except (ClientError, TimeoutError, OSError):
        pass
    return bytes(start)


def _failure_text(error: Exception, endpoint: Endpoint) -> str:
    """Why there is no answer: one line, without the URL's path, which may be a secret."""
    cause = error.os_error if isinstance(error, ClientConnectorError) else None
    why = "" if cause is None else cause.strerror or type(cause).__name__
    match error:
        case _ if isinstance(cause, AddressRefusedError):
            text = f"not connected: {cause}"
        case ConnectionTimeoutError():
            text = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        case TimeoutError():
            text = f"no answer within {endpoint.timeout_ms} ms"
        case ClientConnectorDNSError():
            text = f"the name {endpoint.url.host} does not resolve: {why}"
        case ClientConnectorCertificateError():
            text = f"its certificate is not trusted: {error.certificate_error}"
        case ClientSSLError():
            text = f"no TLS connection: {why}"
        case ClientConnectorError():
            text = f"no connection: {why}"
        case ClientConnectionError() | OSError():
            text = "the connection was closed before an answer came"
        case _:
            text = f"no answer that can be read ({type(error).__name__})"
    return text
