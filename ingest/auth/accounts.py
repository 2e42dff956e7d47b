"""The configured accounts of MASKLINE_AUTH_TOKENS and their tokens: only their signatures count. Pure.

An account may have several tokens while one replaces the other. A main account's token (`MA…`) also signs what its
subaccounts send, in the Ma headers.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from maskline.ingest.auth.signatures import Token
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings

MAIN_PREFIX: Final = "MA"

_AUTH_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The form of an account in the path if none is configured and verification is off."""

Credential = tuple[str, Token]
"""An auth_id and one of its tokens."""


class Accounts:
    """The configured accounts. Without any, which only an unverified node has, every account is known."""

    __slots__ = ("_by_auth_id", "all_credentials", "main_credentials")

    def __init__(self, auth_tokens: Iterable[tuple[str, str]]) -> None:
        by_auth_id: dict[str, list[Credential]] = {}
        for auth_id, token in auth_tokens:
            by_auth_id.setdefault(auth_id, []).append((auth_id, Token(token)))
        self._by_auth_id = {auth_id: tuple(credentials) for auth_id, credentials in by_auth_id.items()}
        self.all_credentials: tuple[Credential, ...] = tuple(
            credential for credentials in self._by_auth_id.values() for credential in credentials
        )
        self.main_credentials: tuple[Credential, ...] = tuple(
            credential for credential in self.all_credentials if credential[0].startswith(MAIN_PREFIX)
        )

    def knows(self, auth_id: str) -> bool:
        """Whether callbacks may come to `/callbacks/{auth_id}`."""
        if self._by_auth_id:
            return auth_id in self._by_auth_id
        return _AUTH_ID.fullmatch(auth_id) is not None

    def credentials(self, auth_id: str) -> tuple[Credential, ...]:
        """Who may sign a callback to this account's path; an empty `auth_id` stands for the common path."""
        return self._by_auth_id.get(auth_id, ()) if auth_id else self.all_credentials


def require_auth_tokens(settings: Settings) -> None:
    """Raise ConfigError where signatures are verified, and there is no token to verify them with."""
    if settings.verify != "off" and not settings.auth_tokens:
        raise ConfigError(
            "MASKLINE_AUTH_TOKENS is empty: set it to auth_id:token, "
            "or MASKLINE_VERIFY=off to take unsigned callbacks"
        )


def signing_account(
    credentials: Iterable[Credential], texts: Sequence[bytes], signatures: Sequence[bytes]
) -> str | None:
    """The auth_id with a token that made one of the signatures over one of the texts; None if there is none."""
    if not signatures:
        return None
    for auth_id, token in credentials:
        if token.matches(texts, signatures):
            return auth_id
    return None
