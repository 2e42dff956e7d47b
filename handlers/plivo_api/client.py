"""Asks Plivo's REST API to end masking sessions.

The request is that of Plivo's own package (`MaskingSessions.delete_masking_session`), which a test records; that
package blocks its thread, so it is not used here.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, encode_basic_auth
from yarl import URL

from maskline.handlers.plivo_api.answers import outcome_of
from maskline.schemas.answer_text import answer_text
from maskline.schemas.errors import MasklineError
from maskline.schemas.retry_after import retry_after_ms

TIMEOUT_S: Final = 10
"""For one request, connecting included. Twice what Plivo's package waits."""

DETAIL_BYTES_MAX: Final = 2048
"""How much of an answer is read, for the error text."""

_SESSION_UUID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A session's name in the path. Anything else could name another resource, `..` for one."""


class PlivoApiError(MasklineError):
    """Plivo did not end the session; another try may succeed.

    `status`: that of its answer; None without one. `after_ms`: how long it asks to wait, in milliseconds;
    None if it does not say.
    """

    def __init__(self, status: int | None, reason: str, after_ms: int | None = None) -> None:
        super().__init__(reason if status is None else f"Plivo answered {status}: {reason}")
        self.status = status
        self.after_ms = after_ms


class PlivoRefusedError(PlivoApiError):
    """Plivo did not end the session, and no further try can succeed."""


class PlivoClient:
    """Ends masking sessions by Plivo's REST API.

    `http`: makes the requests. `api_url`: scheme and host, as `https://api.plivo.com`. `auth_tokens`: accounts with
    their tokens, as MASKLINE_AUTH_TOKENS has them; an account with two tokens is being rotated.
    """

    def __init__(self, http: ClientSession, api_url: str, auth_tokens: Iterable[tuple[str, str]]) -> None:
        self._http = http
        self._api_url = api_url
        self._tokens: dict[str, list[str]] = {}
        for auth_id, token in auth_tokens:
            self._tokens.setdefault(auth_id, []).append(token)

    def account_of(self, auth_id: str) -> str | None:
        """The account whose session it is: `auth_id`, which signed the callback, or the only one there is.

        None if there is no token for it.
        """
        if not auth_id and len(self._tokens) == 1:
            return next(iter(self._tokens))
        return auth_id if auth_id in self._tokens else None

    async def end_session(self, auth_id: str, session_uuid: str) -> int:
        """End a session: `DELETE /v1/Account/{auth_id}/Masking/Session/{session_uuid}/`. Done if it has ended before.

        Returns the status of Plivo's answer. Raises PlivoApiError, PlivoRefusedError where no further try can help, and
        what aiohttp raises while Plivo cannot be reached.
        """
        if _SESSION_UUID.fullmatch(session_uuid) is None:
            raise PlivoRefusedError(None, "nothing was sent, as this is no SessionUUID of Plivo's")
        url = URL(f"{self._api_url}/v1/Account/{auth_id}/Masking/Session/{session_uuid}/", encoded=True)
        tokens = self._tokens[auth_id]
        try:
            for last, token in ((token is tokens[-1], token) for token in tokens):
                async with self._http.delete(
                    url,
                    headers={"Authorization": encode_basic_auth(auth_id, token)},
                    json={"session_uuid": session_uuid},
                    allow_redirects=False,
                    timeout=ClientTimeout(total=TIMEOUT_S),
                ) as answer:
                    if answer.status == 401 and not last:
                        continue
                    await _check(answer)
                    return answer.status
        except TimeoutError:
            raise PlivoApiError(None, f"Plivo has not answered within {TIMEOUT_S} s") from None
        raise AssertionError("no account is without a token")


async def _start(answer: ClientResponse) -> bytes:
    """How the answer's body begins. Its status counts, whatever becomes of its body."""
    try:
        return await answer.content.read(DETAIL_BYTES_MAX)
    except (ClientError, TimeoutError, OSError):
        return b""


async def _check(answer: ClientResponse) -> None:
    outcome, why = outcome_of(answer.status)
    if outcome == "done":
        return
    detail = answer_text(await _start(answer))
    reason = f"{why} ({detail})" if detail else why
    if outcome == "refused":
        raise PlivoRefusedError(answer.status, reason)
    raise PlivoApiError(
        answer.status, reason, retry_after_ms(answer.headers.get("Retry-After"), datetime.now(UTC))
    )
