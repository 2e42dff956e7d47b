"""Logs why callbacks are refused: the first refusal of each reason at once, then one line an interval.

A flood of unsigned requests must not become a flood of log lines; and a wrong MASKLINE_PUBLIC_URL, the commonest
mistake of all, must show in the log with the URL that was checked.
"""

from time import monotonic
from typing import Final

from maskline.ingest.auth.dialled_url import DialledUrl, Headers, split_absolute
from maskline.ingest.auth.verifier import SIGNATURE_WRONG
from maskline.ingest.refusal import Refusal
from maskline.runtime.logs import get_logger

INTERVAL_S: Final = 10.0
"""Between two lines of one reason, of which there are two dozen. Refusals with a hint of their own count apart from
those without: scanners ask for unknown paths too."""
URL_MAX_CHARS: Final = 200

_HINTS: Final = {
    SIGNATURE_WRONG.code: "check MASKLINE_AUTH_TOKENS, and set MASKLINE_PUBLIC_URL if `url` is not what Plivo dials"
}

_log = get_logger("maskline.ingest")


class RefusalLog:
    """The rate-limited log of one node's refusals."""

    def __init__(self, dialled_url: DialledUrl) -> None:
        self._dialled_url = dialled_url
        self._next_line_at: dict[str, float] = {}
        """When each reason was last logged, by the monotonic clock."""
        self._unlogged: dict[str, int] = {}
        """Refusals since the last line, by reason."""

    def record(self, refusal: Refusal, target: str, headers: Headers, peer: str) -> None:
        """Log a refusal, or count it for the next line of its reason.

        `target`: the request's target as it came, empty where none could be read. `peer`: the address of the
        connection's other end.
        """
        code, hint = refusal.code, refusal.hint or _HINTS.get(refusal.code, "")
        reason = f"{code}, with a hint" if refusal.hint else code
        now = monotonic()
        if now < self._next_line_at.get(reason, 0.0):
            self._unlogged[reason] = self._unlogged.get(reason, 0) + 1
            return
        self._next_line_at[reason] = now + INTERVAL_S
        _log.warning(
            "callbacks refused",
            status=refusal.status,
            reason=code,
            detail=refusal.detail,
            url=self._checked_url(target, headers, peer)[:URL_MAX_CHARS],
            client=self._dialled_url.client_address(headers, peer),
            unlogged_before=self._unlogged.pop(reason, 0),
            **({"hint": hint} if hint else {}),
        )

    def _checked_url(self, target: str, headers: Headers, peer: str) -> str:
        """The URL that a signature is checked for, without query, fragment, user and password."""
        authority, path = split_absolute(target.partition("?")[0].partition("#")[0])
        if not path:
            return ""
        url = self._dialled_url.base_url(authority, path, headers, peer)
        scheme, separator, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
