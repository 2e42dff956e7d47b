"""The throw-away account of `maskline dev`, and the choice of the account that `maskline simulate` signs with.

`maskline dev` makes a throw-away account if none is set, in `.maskline/account.json` of the directory it runs in:
readable by its owner only, so that a second terminal in the same directory finds it. No real account is ever written
there.
"""

import os
import secrets
import string
from pathlib import Path
from typing import Final

import msgspec

from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings

STATE_DIRECTORY: Final = Path(".maskline")
"""Where dev keeps its files, below the directory it runs in."""
_ACCOUNT_FILE: Final = "account.json"
_AUTH_ID_LETTERS: Final = string.ascii_uppercase + string.digits
_AUTH_ID_LENGTH: Final = 20
"""As Plivo's have: two letters for the kind, `MA` for a main account, and eighteen more characters."""
_TOKEN_BYTES: Final = 30


class Account(msgspec.Struct, frozen=True):
    """An account of Plivo's, and the token that signs for it."""

    auth_id: str
    auth_token: str

    def __repr__(self) -> str:
        return f"Account({self.auth_id})"


def throw_away_account(directory: Path = STATE_DIRECTORY) -> Account:
    """The throw-away account in `directory`, made at first use. Raises ConfigError if its file cannot be used."""
    found = _read(directory)
    if found is not None:
        return found
    drawn = "".join(secrets.choice(_AUTH_ID_LETTERS) for _ in range(_AUTH_ID_LENGTH - 2))
    account = Account(f"MA{drawn}", secrets.token_urlsafe(_TOKEN_BYTES))
    path = directory / _ACCOUNT_FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written to another file and renamed, so that a second terminal never reads half of it.
        aside = path.with_suffix(f".{os.getpid()}")
        aside.touch(mode=0o600)
        aside.write_bytes(msgspec.json.encode(account))
        aside.rename(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return account


def find_account(settings: Settings, auth_id: str | None, auth_token: str | None) -> Account:
    """The account that signs: from the command line, else MASKLINE_AUTH_TOKENS, else the throw-away account.

    Raises ConfigError if none of them names one.
    """
    if auth_token is not None:
        return Account(auth_id or "", auth_token)
    # Of an account with several tokens the last is the newest, as a rotation appends it.
    known = [Account(*pair) for pair in settings.auth_tokens]
    local = _read(STATE_DIRECTORY)
    if local is not None:
        known.insert(0, local)
    if auth_id is not None:
        known = [account for account in known if account.auth_id == auth_id]
        if not known:
            raise ConfigError(f"--auth-id {auth_id}: MASKLINE_AUTH_TOKENS has no token of this account")
        return known[-1]
    if settings.auth_tokens:
        return Account(*settings.auth_tokens[0])
    if local is not None:
        return local
    raise ConfigError(
        "no account to sign with: set MASKLINE_AUTH_TOKENS=auth_id:token, or run this where maskline dev runs"
    )


def _read(directory: Path) -> Account | None:
    path = directory / _ACCOUNT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Account)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError:
        raise ConfigError(f"{path} is damaged: remove it, and maskline dev makes a new account") from None
