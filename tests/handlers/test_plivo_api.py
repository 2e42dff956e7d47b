"""The client of Plivo's REST API against a local server, which records what it and Plivo's own package send."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import plivo
import plivo.rest.client
import pytest
from aiohttp import ClientConnectionError, ClientSession, web
from aiohttp.test_utils import TestServer

from maskline.handlers.plivo_api import client as client_module
from maskline.handlers.plivo_api.answers import OTHERWISE, OUTCOMES
from maskline.handlers.plivo_api.client import PlivoApiError, PlivoClient, PlivoRefusedError

ACCOUNT, TOKEN = "MAXXXXXXXXXXXXXXXXXX", "not-a-real-token"
SESSION = "5e551011-0000-4000-8000-000000000000"


class PlivoServer:
    """Answers with `status`, `headers` and `body`, and records requests."""

    def __init__(self) -> None:
        self.status = 204
        self.headers: dict[str, str] = {}
        self.body = b""
        self.good_token = TOKEN
        self.requests: list[dict[str, Any]] = []
        self.silent: asyncio.Event | None = None
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.Response:
        if self.silent is not None:
            await self.silent.wait()
        scheme, _, encoded = request.headers["Authorization"].partition(" ")
        assert scheme == "Basic"
        account, _, token = base64.b64decode(encoded).decode().partition(":")
        self.requests.append(
            {
                "method": request.method,
                "path": request.raw_path,
                "account": account,
                "token": token,
                "content_type": request.headers.get("Content-Type"),
                "body": json.loads(await request.text() or "null"),
            }
        )
        if token != self.good_token:
            return web.Response(status=401, body=b"{}")
        return web.Response(status=self.status, headers=self.headers, body=self.body)


@pytest.fixture
async def server() -> AsyncIterator[PlivoServer]:
    it = PlivoServer()
    await it.server.start_server()
    yield it
    await it.server.close()


@pytest.fixture
async def client(server: PlivoServer) -> AsyncIterator[Callable[..., PlivoClient]]:
    async with ClientSession() as http:
        yield lambda *tokens: PlivoClient(
            http, str(server.server.make_url("")).rstrip("/"), tokens or [(ACCOUNT, TOKEN)]
        )


async def test_request_is_that_of_plivos_own_package(
    server: PlivoServer, client: Callable[..., PlivoClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(server.server.make_url("/v1/Account"))
    monkeypatch.setattr(plivo.rest.client, "API_VOICE_BASE_URI", base)

    def by_the_package() -> None:
        with plivo.RestClient(ACCOUNT, TOKEN) as theirs:
            theirs.masking_sessions.delete_masking_session(SESSION)

    await asyncio.to_thread(by_the_package)
    await client().end_session(ACCOUNT, SESSION)
    theirs, ours = server.requests
    assert ours == theirs
    assert ours["path"] == f"/v1/Account/{ACCOUNT}/Masking/Session/{SESSION}/"


@pytest.mark.parametrize("status", sorted({*OUTCOMES, 301, 302, 307, 408, 409, 418, 500, 502, 503, 504}))
async def test_each_status_has_its_outcome(
    server: PlivoServer, client: Callable[..., PlivoClient], status: int
) -> None:
    server.status = status
    server.headers = {"Location": "/elsewhere"}
    server.good_token = TOKEN if status != 401 else "another"
    outcome, _ = OUTCOMES.get(status, OTHERWISE)
    if outcome == "done":
        assert await client().end_session(ACCOUNT, SESSION) == status
    else:
        with pytest.raises(PlivoApiError) as raised:
            await client().end_session(ACCOUNT, SESSION)
        assert isinstance(raised.value, PlivoRefusedError) is (outcome == "refused")
        assert raised.value.status == status
    assert len(server.requests) == 1  # no redirect is followed, no second try is made here


async def test_a_session_that_has_ended_before_is_done(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    server.status = 404
    await client().end_session(ACCOUNT, SESSION)


async def test_too_many_requests_say_how_long_to_wait(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    server.status, server.headers = 429, {"Retry-After": "7"}
    with pytest.raises(PlivoApiError) as raised:
        await client().end_session(ACCOUNT, SESSION)
    assert raised.value.after_ms == 7_000


async def test_while_a_token_is_rotated_each_is_tried(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    server.good_token = "new"
    await client((ACCOUNT, "old"), (ACCOUNT, "new")).end_session(ACCOUNT, SESSION)
    assert [request["token"] for request in server.requests] == ["old", "new"]
    server.good_token = "neither"
    with pytest.raises(PlivoApiError, match="MASKLINE_AUTH_TOKENS"):
        await client((ACCOUNT, "old"), (ACCOUNT, "new")).end_session(ACCOUNT, SESSION)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a?b", "a b", "a%2Fb", "é", "x" * 65, "a\n"])
async def test_a_name_that_would_change_the_path_is_never_sent(
    server: PlivoServer, client: Callable[..., PlivoClient], name: str
) -> None:
    with pytest.raises(PlivoRefusedError, match=r"\Anothing was sent"):
        await client().end_session(ACCOUNT, name)
    assert not server.requests


async def test_errors_show_neither_token_nor_number_and_are_short(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    server.status = 500
    server.body = b'{"error": "call of +1 415-555-0123 failed\x1b[2J' + b"!" * 5_000
    with pytest.raises(PlivoApiError) as raised:
        await client().end_session(ACCOUNT, SESSION)
    text = str(raised.value)
    assert "call of" in text
    assert "555" not in text
    assert text.isprintable()
    assert TOKEN not in text
    assert len(text) < 400


async def test_a_refusal_whose_body_cannot_be_read_is_one_all_the_same(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    server.status, server.headers, server.body = 422, {"Content-Encoding": "gzip"}, b"no gzip"
    with pytest.raises(PlivoRefusedError, match="Plivo answered 422"):
        await client().end_session(ACCOUNT, SESSION)


async def test_plivo_that_does_not_answer_is_told_so(
    server: PlivoServer, client: Callable[..., PlivoClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "TIMEOUT_S", 0.05)
    server.silent = asyncio.Event()
    with pytest.raises(PlivoApiError, match=r"has not answered within 0\.05 s"):
        await client().end_session(ACCOUNT, SESSION)
    server.silent.set()


async def test_plivo_that_cannot_be_reached_is_no_refusal(
    server: PlivoServer, client: Callable[..., PlivoClient]
) -> None:
    ours = client()
    await server.server.close()
    with pytest.raises(ClientConnectionError) as raised:
        await ours.end_session(ACCOUNT, SESSION)
    assert TOKEN not in str(raised.value)


def test_account_is_the_one_that_signed_or_the_only_one() -> None:
    http: Any = None
    one = PlivoClient(http, "", [(ACCOUNT, "a"), (ACCOUNT, "b")])
    two = PlivoClient(http, "", [(ACCOUNT, "a"), ("SAXXXXXXXXXXXXXXXXXX", "b")])
    assert one.account_of("") == one.account_of(ACCOUNT) == ACCOUNT
    assert two.account_of("") is None
    assert two.account_of("SAXXXXXXXXXXXXXXXXXX") == "SAXXXXXXXXXXXXXXXXXX"
    assert one.account_of("MAYYYYYYYYYYYYYYYYYY") is None


def test_page_has_the_table_of_statuses() -> None:
    page = (Path(__file__).parents[2] / "docs" / "modules" / "expire.md").read_text()
    shown = dict(re.findall(r"^\| (\d{3}|any other) \| `(\w+)` \|", page, re.MULTILINE))
    assert shown == {
        **{str(status): outcome for status, (outcome, _) in OUTCOMES.items()},
        "any other": OTHERWISE[0],
    }
