"""The module as users load it: in a harness, against a local server in place of Plivo."""

import importlib
import sys
from collections.abc import AsyncIterator
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from maskline.schemas.errors import ConfigError
from maskline.testing import SESSION_UUID, Harness, callback

MODULE = "maskline.handlers.expire"


class Plivo:
    """Answers with the statuses in `answers`, then 204, and records paths."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.paths: list[str] = []
        app = web.Application()
        app.router.add_delete("/{path:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        return web.Response(status=self.answers.pop(0) if self.answers else 204)


@pytest.fixture
async def plivo(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plivo]:
    it = Plivo()
    await it.server.start_server()
    monkeypatch.setenv("MASKLINE_PLIVO_API_URL", str(it.server.make_url("")))
    monkeypatch.setenv("MASKLINE_AUTH_TOKENS", "MAXXXXXXXXXXXXXXXXXX:not-a-real-token")
    yield it
    await it.server.close()


@pytest.fixture
def expire(monkeypatch: pytest.MonkeyPatch, plivo: Plivo) -> ModuleType:
    """The module, imported with the settings of the test."""
    monkeypatch.setenv("MASKLINE_EXPIRE_AFTER_CALL", "answered")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    monkeypatch.delitem(sys.modules, MODULE)
    return module


async def test_a_finished_call_ends_the_session_of_its_account(plivo: Plivo, expire: ModuleType) -> None:
    async with Harness(expire) as harness:
        with capture_logs() as logs:
            await harness.feed(
                callback("SessionSecondPartyAnswer", sequence_number=1),
                callback("SessionPartiesHangup", sequence_number=2, duration=31, amount="0.02"),
            )
    assert plivo.paths == [f"/v1/Account/MAXXXXXXXXXXXXXXXXXX/Masking/Session/{SESSION_UUID}/"]
    assert [line["after"] for line in logs if line["event"] == "session ended"] == ["SessionPartiesHangup"]
    assert [call.handler for call in harness.calls] == ["expire"]  # no other event is any of its business


async def test_a_call_that_nobody_answered_leaves_the_session(plivo: Plivo, expire: ModuleType) -> None:
    async with Harness(expire) as harness:
        await harness.feed(callback("SessionPartiesHangup", sequence_number=1, duration=0))
    assert not plivo.paths


async def test_plivo_that_fails_is_asked_again(plivo: Plivo, expire: ModuleType) -> None:
    plivo.answers = [500, 429, 401]
    async with Harness(expire) as harness:
        await harness.feed(callback("SessionPartiesHangup", sequence_number=1, duration=5))
        await harness.pass_time(600)
        assert len(plivo.paths) == 4
        assert not harness.dead_letters


async def test_a_refusal_is_a_dead_letter_and_holds_nothing_up(plivo: Plivo, expire: ModuleType) -> None:
    plivo.answers = [422]
    async with Harness(expire) as harness:
        await harness.feed(
            callback("SessionPartiesHangup", sequence_number=1, duration=5),
            callback("SessionPartiesHangup", sequence_number=2, duration=5, amount="0.1"),
        )
    assert len(harness.dead_letters) == 1
    assert len(plivo.paths) == 2


async def test_without_tokens_it_does_not_start(expire: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLINE_AUTH_TOKENS", "")
    with pytest.raises(ConfigError, match="MASKLINE_AUTH_TOKENS"):
        async with Harness(expire):
            pass


async def test_an_account_without_a_token_is_a_dead_letter(
    plivo: Plivo, expire: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLINE_AUTH_TOKENS", "MAXXXXXXXXXXXXXXXXXX:a,SAXXXXXXXXXXXXXXXXXX:b")
    async with Harness(expire) as harness:
        await harness.feed(callback("SessionPartiesHangup", sequence_number=1, duration=5))
    assert not plivo.paths
    (letter,) = harness.dead_letters
    assert "nobody signed the callback" in letter.reason
