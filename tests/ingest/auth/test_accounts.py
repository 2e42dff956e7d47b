"""Accounts: which are known, and whose tokens may sign for which path."""

import pytest

from maskline.ingest.auth.accounts import Accounts, signing_account
from maskline.ingest.auth.signatures import Token

TOKENS = (("MA1", "main-old"), ("SA1", "sub"), ("MA1", "main-new"), ("MA2", "other"))


def auth_ids(credentials) -> list[str]:
    return [auth_id for auth_id, _ in credentials]


def test_path_of_an_account_takes_its_tokens_and_the_common_path_all():
    accounts = Accounts(TOKENS)
    assert auth_ids(accounts.credentials("MA1")) == ["MA1", "MA1"]
    assert auth_ids(accounts.credentials("SA1")) == ["SA1"]
    assert auth_ids(accounts.credentials("unknown")) == []
    assert sorted(auth_ids(accounts.credentials(""))) == ["MA1", "MA1", "MA2", "SA1"]
    assert sorted(auth_ids(accounts.main_credentials)) == ["MA1", "MA1", "MA2"]


@pytest.mark.parametrize(
    ("tokens", "auth_id", "known"),
    [
        (TOKENS, "MA1", True),
        (TOKENS, "MA9", False),
        ((), "MA9", True),
        ((), "a_b-1", True),
        ((), "a/b", False),
        ((), "x" * 65, False),
        ((), "é", False),
    ],
)
def test_known_accounts_are_the_configured_ones_or_any_plausible_one(tokens, auth_id, known):
    assert Accounts(tokens).knows(auth_id) is known


def test_signing_account_is_the_one_whose_token_fits_any_text():
    credentials = Accounts(TOKENS).credentials("")
    signature = Token("sub").sign(b"text")
    assert signing_account(credentials, [b"other", b"text"], [b"x", signature]) == "SA1"
    assert signing_account(credentials, [b"other"], [signature]) is None
    assert signing_account(credentials, [b"text"], []) is None
