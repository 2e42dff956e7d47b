"""Ends a masking session by Plivo's REST API: after a call, after too many wrong PINs, or when a function of yours says
so (MASKLINE_EXPIRE_AFTER_CALL, MASKLINE_EXPIRE_PIN_FAILURES, MASKLINE_EXPIRE_FUNCTION).

From then on the virtual number connects the two parties no more.

- *Resource*: one HTTP client for all events of the process, with a bound on its connections.
- *Idempotency*: to end a session twice is to end it once, and Plivo answers 404 the second time, so this needs no key.
- *Fencing*: for the same reason it does no harm if a worker that has lost the session asks, too.
"""

from collections.abc import AsyncIterator
from typing import Final

from aiohttp import ClientSession, TCPConnector

from maskline import Context, Reject, Retry, on, resource
from maskline.events import Event
from maskline.handlers.plivo_api.client import PlivoApiError, PlivoClient, PlivoRefusedError
from maskline.handlers.plivo_api.expiry_rules import expiry_rules
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings

CONNECTIONS_MAX: Final = 16
"""Requests to Plivo at once, in each worker process."""

GIVE_UP_AFTER_S: Final = 3_600
"""By then a session has mostly ended by itself: Plivo's `session_expiry` is an hour unless it is set."""

RULES: Final = expiry_rules(load_settings())


@resource
async def plivo() -> AsyncIterator[PlivoClient]:
    """Plivo's REST API, with the accounts of MASKLINE_AUTH_TOKENS. Raises ConfigError if there is none."""
    settings = load_settings()
    if not settings.auth_tokens:
        raise ConfigError("MASKLINE_AUTH_TOKENS is empty: ending sessions needs auth_id:token")
    async with ClientSession(connector=TCPConnector(limit=CONNECTIONS_MAX)) as http:
        yield PlivoClient(http, settings.plivo_api_url, settings.auth_tokens)


# Later events of the session have nothing to wait for, so a session that cannot be ended is not parked.
@on(
    *RULES.types,
    name="expire",
    concurrency=CONNECTIONS_MAX,
    give_up_after_s=GIVE_UP_AFTER_S,
    on_give_up="skip",
)
async def end_session(event: Event, ctx: Context, plivo: PlivoClient) -> None:
    """End the event's session if the rules say so."""
    if not await RULES.ends_session(event, ctx):
        return
    account = plivo.account_of(ctx.callback.auth_id)
    if account is None:
        if ctx.callback.auth_id:
            raise Reject("MASKLINE_AUTH_TOKENS has no token of the account that signed the callback")
        raise Reject("nobody signed the callback, and MASKLINE_AUTH_TOKENS has several accounts")
    try:
        status = await plivo.end_session(account, ctx.session_uuid)
    except PlivoRefusedError as error:
        raise Reject(str(error)) from error
    except PlivoApiError as error:
        if error.after_ms is None:
            raise
        raise Retry(str(error), after_ms=error.after_ms) from error
    ctx.log.info("session ended", after=event.event_name, plivo_status=status)
