import asyncio
import time
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import msgspec
import pytest
from aiohttp import web
from plivo.utils import validate_v3_signature

from maskline.console.simulate.plan import PlanOptions, interleave, plan_sessions
from maskline.console.simulate.player import Player, Target
from maskline.console.simulate.report import PlanProgress, lines, percentile, report
from maskline.console.simulate.sessions import SessionOptions

TOKEN = "not-a-real-token"


class Server:
    """A tiny HTTP server: checks every signature with Plivo's own SDK and answers as told."""

    def __init__(self):
        self.requests = []
        self.nonces = set()
        self.port = 0
        self.under_way = 0
        self.most_under_way = 0
        self.answer = self.ok

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/callbacks"

    async def ok(self, _request):
        return web.Response(status=200)

    async def handle(self, request):
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            body = await request.read()
            if request.content_type == "application/json":
                parameters = msgspec.json.decode(body)
            else:
                parameters = parse_qs(body.decode(), keep_blank_values=True)
            nonce = request.headers["X-Plivo-Signature-V3-Nonce"]
            valid = validate_v3_signature(
                request.method,
                f"http://{request.host}{request.path_qs}",
                nonce,
                TOKEN,
                request.headers["X-Plivo-Signature-V3"],
                parameters,
            )
            self.requests.append((request.method, request.rel_url.raw_query_string, body, valid))
            self.nonces.add(nonce)
            return await self.answer(request)
        finally:
            self.under_way -= 1


@asynccontextmanager
async def serving():
    server = Server()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


def sends_of(**kwargs):
    options = PlanOptions(seed=5, **kwargs)
    return list(interleave(plan_sessions(options), options))


@pytest.mark.parametrize("query", ["", "?tenant=5&empty="])
async def test_plivos_own_sdk_accepts_every_request(query):
    async with serving() as server:
        sends = sends_of(sessions=6, get=0.4, json_bodies=0.3, duplicates=0.3)
        assert {send.method for send in sends} == {"GET", "POST"}
        tally = await Player(Target(server.url + query, TOKEN)).play(iter(sends), asyncio.Event())
    assert tally.all_taken
    assert tally.sent == tally.answers[200] == len(sends) == len(server.requests)
    assert all(valid for *_, valid in server.requests)
    assert len(server.nonces) == len(sends)
    assert tally.duplicates == sum(send.duplicate for send in sends) > 0
    assert {body for method, _, body, _ in server.requests if method == "POST"} == {
        send.body for send in sends if send.method == "POST"
    }


async def test_a_wrong_token_is_noticed_by_the_oracle():
    async with serving() as server:
        await Player(Target(server.url, "another-token")).play(iter(sends_of(sessions=1)), asyncio.Event())
    assert not any(valid for *_, valid in server.requests)


async def test_signature_covers_the_public_url():
    async with serving() as server:
        target = Target(server.url, TOKEN, signed_url="https://hooks.example.com/callbacks")
        send = next(send for send in sends_of(sessions=1, get=0, json_bodies=0) if send.method == "POST")
        headers = target.headers(send)
        assert validate_v3_signature(
            "POST",
            "https://hooks.example.com/callbacks",
            headers["X-Plivo-Signature-V3-Nonce"],
            TOKEN,
            headers["X-Plivo-Signature-V3"],
            dict(send.parameters.body),
        )


async def test_answers_are_counted_by_status():
    async with serving() as server:
        answers = iter((200, 503, 403))

        async def answer(_request):
            return web.Response(status=next(answers, 200))

        server.answer = answer
        sends = sends_of(sessions=2)
        tally = await Player(Target(server.url, TOKEN)).play(iter(sends), asyncio.Event())
    assert not tally.all_taken
    # Plivo does not repeat after a 5xx.
    assert tally.answers == {200: len(sends) - 2, 503: 1, 403: 1}
    assert len(server.requests) == len(sends)


async def test_a_timeout_is_retried_once_with_a_new_nonce():
    async with serving() as server:
        hang = asyncio.Event()

        async def answer(_request):
            if len(server.requests) != 2:
                await hang.wait()
            return web.Response()

        server.answer = answer
        sends = sends_of(sessions=1)[:2]
        player = Player(Target(server.url, TOKEN), concurrency=1, answer_timeout_s=0.2)
        tally = await player.play(iter(sends), asyncio.Event())
        hang.set()
    # The first is answered at its second try, the second at neither.
    assert (tally.retried, tally.answers, tally.unanswered) == (2, {200: 1}, {"timeout": 1})
    assert [body for _, _, body, _ in server.requests[:2]] == [sends[0].body] * 2
    assert len(server.nonces) == len(server.requests) == 4


async def test_unreachable_target_is_counted_as_unanswered():
    async with serving() as server:
        url = server.url
    sends = sends_of(sessions=1)
    tally = await Player(Target(url, TOKEN)).play(iter(sends), asyncio.Event())
    assert tally.unanswered == {"no connection": len(sends)}
    assert not tally.all_taken


async def test_concurrency_is_bounded():
    async with serving() as server:
        enough = asyncio.Event()

        async def answer(_request):
            if server.under_way == 3:
                enough.set()
            await enough.wait()
            return web.Response()

        server.answer = answer
        sends = sends_of(sessions=10)
        await Player(Target(server.url, TOKEN), concurrency=3).play(iter(sends), asyncio.Event())
    assert server.most_under_way == 3


async def test_requests_are_sent_at_the_rate():
    async with serving() as server:
        sends = sends_of(sessions=2)
        began = time.monotonic()
        tally = await Player(Target(server.url, TOKEN), rate=100).play(iter(sends), asyncio.Event())
        took = time.monotonic() - began
    assert tally.sent == len(sends)
    assert took >= (len(sends) - 1) / 100


async def test_request_waits_for_all_of_lower_epochs():
    async with serving() as server:
        session = SessionOptions(restart_numbering=True, calls_min=2, calls_max=3)
        sends = sends_of(sessions=5, session=session, get=0, json_bodies=0)
        epochs = {send.body: (send.session, send.epoch) for send in sends if not send.duplicate}
        under_way = []
        wrong = []

        async def answer(request):
            session, epoch = epochs[await request.read()]
            wrong.extend(other for other in under_way if other[0] == session and other[1] != epoch)
            under_way.append((session, epoch))
            await asyncio.sleep(0.002)
            under_way.remove((session, epoch))
            return web.Response()

        server.answer = answer
        only_firsts = (send for send in sends if not send.duplicate)
        tally = await Player(Target(server.url, TOKEN), concurrency=64).play(only_firsts, asyncio.Event())
    assert tally.all_taken
    assert wrong == []
    assert server.most_under_way > 1


async def test_stop_waits_for_requests_under_way():
    async with serving() as server:
        stop = asyncio.Event()

        async def answer(_request):
            stop.set()
            return web.Response()

        server.answer = answer
        sends = sends_of(sessions=20)
        tally = await Player(Target(server.url, TOKEN), rate=200, concurrency=4).play(iter(sends), stop)
    assert tally.all_taken
    assert 0 < tally.sent < len(sends)


async def test_report_counts_sent_lost_and_duplicates():
    options = PlanOptions(seed=5, sessions=4, losses=0.2, duplicates=0.5)
    planned = []
    progress = PlanProgress(planned.append)
    async with serving() as server:
        player = Player(Target(server.url, TOKEN), on_sent=progress.sent)
        tally = await player.play(
            interleave(progress.record(plan_sessions(options)), options), asyncio.Event()
        )
        summary = report(server.url, options, progress, tally)
    assert summary["sessions"] == progress.sessions_done == len(planned) == 4
    assert summary["sent"] == summary["answered"]["200"] == sum(len(plan.sends) for plan in planned)
    assert summary["lost"] == sum(len(plan.lost) for plan in planned) > 0
    assert summary["duplicates"] == progress.duplicates > 0
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    text = "\n".join(lines(summary))
    assert TOKEN not in text
    assert f"200: {summary['sent']}" in text


def test_percentile_is_of_the_nearest_rank():
    assert percentile([], 0.5) == 0
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([1, 2, 3, 4], 0.99) == 4
    assert percentile([7], 0.01) == 7
