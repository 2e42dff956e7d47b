"""Tells the operator why callbacks are refused: the first of each reason at once, then one line an interval.

A flood of unsigned requests must not become a flood of log lines, and a wrong MASKLINE_PUBLIC_URL, the
commonest slip of all, must show in the log with the URL that was checked.
"""

from time import monotonic
from typing import Final, Protocol

from maskline.ingest.auth.dialled_url import DialledUrl, Headers, split_absolute
from maskline.ingest.auth.verifier import SIGNATURE_WRONG
from maskline.ingest.refusal import Refusal
from maskline.runtime.logs import get_logger

INTERVAL_S: Final = 10.0
"""Per reason, of which there are two dozen. One with a hint is told beside one without: scanners ask for paths too."""
URL_MAX_CHARS: Final = 200

_HINTS: Final = {
    SIGNATURE_WRONG.code: "check MASKLINE_AUTH_TOKENS, and set MASKLINE_PUBLIC_URL if `url` is not what Plivo dials"
}

_log = get_logger("maskline.ingest")


class Asked(Protocol):
    """What is told of a refused request. The path is empty where none could be read."""

    @property
    def remote(self) -> str | None: ...

    @property
    def raw_path(self) -> str: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def secure(self) -> bool: ...


class RefusalLog:
    """Logs refusals, few of them."""

    def __init__(self, origin: DialledUrl) -> None:
        self._origin = origin
        self._next_at: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def note(self, refused: Refusal, request: Asked) -> None:
        code, hint = refused.code, refused.hint or _HINTS.get(refused.code, "")
        reason = f"{code}, with a hint" if refused.hint else code
        now = monotonic()
        if now < self._next_at.get(reason, 0.0):
            self._unlogged[reason] = self._unlogged.get(reason, 0) + 1
            return
        self._next_at[reason] = now + INTERVAL_S
        peer = request.remote or ""
        _log.warning(
            "callbacks are refused",
            status=refused.status,
            reason=code,
            detail=refused.detail,
            url=self._url(request, peer)[:URL_MAX_CHARS],
            client=self._origin.client(request.headers, peer),
            unlogged_before=self._unlogged.pop(reason, 0),
            **({"hint": hint} if hint else {}),
        )

    def _url(self, request: Asked, peer: str) -> str:
        """The URL that a signature would be checked for, without a password that may stand in it."""
        authority, path = split_absolute(request.raw_path.partition("?")[0].partition("#")[0])
        if not path:
            return ""
        url = self._origin.base(authority, path, request.headers, secure=request.secure, peer=peer)
        scheme, separator, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
