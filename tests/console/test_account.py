import stat

import pytest

from maskline.console.account import Account, find_account, throw_away_account
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings

TWO = Settings(auth_tokens=(("MA1", "old"), ("MA1", "new"), ("MA2", "other")))


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_throw_away_account_is_kept_and_readable_by_its_owner_only(empty_directory):
    account = throw_away_account()
    assert throw_away_account() == account
    path = empty_directory / ".maskline" / "account.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["account.json"]
    assert account.auth_id.startswith("MA")
    assert len(account.auth_id) == 20
    assert account.auth_token not in repr(account)


def test_account_that_signs_is_the_named_one_else_the_set_one_else_the_throw_away():
    with pytest.raises(ConfigError, match="MASKLINE_AUTH_TOKENS"):
        find_account(Settings(), None, None)
    local = throw_away_account()
    assert find_account(Settings(), None, None) == local
    assert find_account(TWO, None, None) == Account("MA1", "old")
    assert find_account(TWO, "MA2", None) == Account("MA2", "other")
    assert find_account(TWO, "MA1", None) == Account("MA1", "new")
    assert find_account(TWO, None, "given").auth_token == "given"
    assert find_account(TWO, local.auth_id, None) == local
    with pytest.raises(ConfigError, match="MAX") as error:
        find_account(TWO, "MAX", None)
    assert "other" not in str(error.value)


def test_damaged_or_unwritable_account_file_is_a_config_error(empty_directory):
    path = empty_directory / ".maskline" / "account.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        find_account(Settings(), None, None)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        throw_away_account()
