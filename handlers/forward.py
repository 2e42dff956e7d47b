"""Sends each session's events, in order, to HTTP endpoints: for receivers that are not written in Python.

MASKLINE_FORWARD_CONFIG names a TOML file with a table `[[endpoint]]` for each receiver; docs/modules/forward.md has
them all. Each endpoint becomes a handler of its own, `forward NAME`. So retries, order, dead letters, pauses, what
follows an outage, `concurrency` and `rate` are those of any handler, and an endpoint that is away holds up no other.

- **Resource**: one client for the process, with the connections of all endpoints.
- **Idempotency**: `webhook-id` is `ctx.idempotency_key`, which is the same at every delivery of an event. A receiver
  that remembers the IDs of what it has handled handles nothing twice.
- **Fencing**: HTTP has no such thing. After a worker was cut off, its last request and the next owner's may cross; both
  have the same ID.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from maskline import Context, Reject, Retry, on, resource
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings

try:
    from maskline.handlers.webhooks.answers import outcome_of, problem_text, wait_ms
    from maskline.handlers.webhooks.client import ANSWER_BODY_S, WebhookClient
    from maskline.handlers.webhooks.config import read_endpoints
    from maskline.handlers.webhooks.endpoint import Endpoint
    from maskline.handlers.webhooks.headers import message_headers
    from maskline.handlers.webhooks.message import body_of, message_of
except ModuleNotFoundError as error:
    if error.name != "standardwebhooks":
        raise
    raise ConfigError("forward needs a package: pip install 'maskline[forward]'") from None

MARGIN_MS: Final = 1_000
"""By so much the client's own time limit is the shorter one: its error says more than the worker's."""


def _endpoints() -> tuple[Endpoint, ...]:
    path = load_settings().forward_config
    if path is None:
        raise ConfigError("MASKLINE_FORWARD_CONFIG must name the TOML file with the endpoints")
    return read_endpoints(path)


ENDPOINTS: Final = _endpoints()


@resource
async def forward_client() -> AsyncIterator[WebhookClient]:
    """The client that all endpoints share."""
    async with WebhookClient(ENDPOINTS) as client:
        yield client


def _handler(endpoint: Endpoint) -> Callable[..., Awaitable[None]]:
    """The handler that forwards to one endpoint."""

    @on(
        *endpoint.types,
        name=f"forward {endpoint.name}",
        timeout_ms=endpoint.timeout_ms + round(ANSWER_BODY_S * 1000) + MARGIN_MS,
        concurrency=endpoint.concurrency,
        rate=endpoint.rate,
        retries=endpoint.retries,
        give_up_after_s=endpoint.give_up_after_s,
        on_give_up=endpoint.on_give_up,
    )
    async def forward(event: Any, ctx: Context, forward_client: WebhookClient) -> None:
        message = message_of(event, ctx, endpoint.numbers)
        body = body_of(message)
        headers = message_headers(ctx, message.type, body, endpoint.signers, datetime.now(UTC))
        # Where no answer comes, this raises, and the event is tried again.
        answer = await forward_client.post(endpoint, body, headers)
        outcome = outcome_of(answer.status)
        if outcome == "done":
            return
        problem = problem_text(endpoint.name, answer, endpoint.hidden)
        if outcome == "give_up":
            raise Reject(problem)
        raise Retry(problem, after_ms=wait_ms(answer, datetime.now(UTC)))

    return forward


# maskline finds handlers among a module's names.
globals().update({f"forward_to_{number}": _handler(endpoint) for number, endpoint in enumerate(ENDPOINTS, 1)})
