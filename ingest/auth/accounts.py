"""Whose signatures count: the accounts of MASKLINE_AUTH_TOKENS with their tokens.

An account may have several tokens while one replaces the other. A main account's token (`MA…`) also signs
what its subaccounts send, in the Ma headers.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from maskline.ingest.auth.signatures import Token

MAIN_PREFIX: Final = "MA"

_AUTH_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What an account in the path may look like where none is configured and verification is off."""

Holder = tuple[str, Token]
"""An auth_id and one of its tokens."""


class Accounts:
    """The configured accounts. Without any, which only an unverified node has, every account is taken."""

    __slots__ = ("_by_id", "everyone", "mains")

    def __init__(self, auth_tokens: Iterable[tuple[str, str]]) -> None:
        by_id: dict[str, list[Holder]] = {}
        for auth_id, token in auth_tokens:
            by_id.setdefault(auth_id, []).append((auth_id, Token(token)))
        self._by_id = {auth_id: tuple(holders) for auth_id, holders in by_id.items()}
        self.everyone: tuple[Holder, ...] = tuple(
            holder for holders in self._by_id.values() for holder in holders
        )
        self.mains: tuple[Holder, ...] = tuple(h for h in self.everyone if h[0].startswith(MAIN_PREFIX))

    def knows(self, auth_id: str) -> bool:
        if self._by_id:
            return auth_id in self._by_id
        return _AUTH_ID.fullmatch(auth_id) is not None

    def holders(self, auth_id: str) -> tuple[Holder, ...]:
        """Who may have signed a callback to this account's path, or to the common one where it is empty."""
        return self._by_id.get(auth_id, ()) if auth_id else self.everyone


def signer(holders: Iterable[Holder], texts: Sequence[bytes], values: Sequence[bytes]) -> str | None:
    """The account one of whose tokens made one of the values of one of the texts."""
    if not values:
        return None
    for auth_id, token in holders:
        if token.signed(texts, values):
            return auth_id
    return None
