"""What is sent, and what becomes of it where the answers are bad."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice

from aiohttp import web
from chaos_handlers import DO, TAG
from history import Answer
from plivo.utils import validate_v3_signature
from traffic import AUTH_TOKEN, TREATED, Event, Traffic, sessions

SESSIONS = 300

Reply = Callable[[str, int], Awaitable[int]]


def events(seed: int, count: int = SESSIONS) -> list[Event]:
    return [event for session in islice(sessions(seed), count) for event in session]


def test_the_seed_says_everything():
    assert events(5) == events(5)
    assert events(5) != events(6)


def test_every_callback_has_a_tag_of_its_own_and_all_kinds_come():
    made = events(1)
    assert len({event.tag for event in made}) == len(made)
    assert all(dict(event.pairs)[TAG] == event.tag for event in made)
    treated = Counter(one for event in made for one in dict(event.pairs).get(DO, "").split())
    assert treated.keys() == {
        f"{handler}={treatment}" for handler, treatments in TREATED.items() for treatment in treatments
    }
    assert treated.total() < 0.1 * len(made)
    assert 0 < sum(event.repeat for event in made) < 0.1 * len(made)
    altered = [(event, by_tag) for event in made if (by_tag := event.tag.removesuffix(".again")) != event.tag]
    first = {event.tag: event for event in made}
    assert 0.02 * len(made) < len(altered) < 0.06 * len(made)
    changed = Counter(
        "number"
        if event.number != first[tag].number
        else "time"
        if dict(event.pairs)["EventTimestamp"] != dict(first[tag].pairs)["EventTimestamp"]
        else "parameter"
        for event, tag in altered
    )
    assert changed.keys() == {"number", "time", "parameter"}
    late = sum(
        later.after_s < event.after_s
        for session in islice(sessions(1), SESSIONS)
        for event, later in zip(
            session, sorted(session, key=lambda it: int(it.tag.split(".")[1])), strict=True
        )
    )
    assert late > 0.05 * len(made), "some are overtaken"


@asynccontextmanager
async def server(answer: Reply) -> AsyncIterator[int]:
    """Asks `answer` what to say to a tag, which has come so often before; 0 closes the connection."""
    times: Counter[str] = Counter()

    async def handle(request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        headers = request.headers
        signed = validate_v3_signature(
            "POST",
            str(request.url),
            headers["X-Plivo-Signature-V3-Nonce"],
            AUTH_TOKEN,
            headers["X-Plivo-Signature-V3"],
            form,
        )
        assert signed
        times[form[TAG]] += 1
        status = await answer(form[TAG], times[form[TAG]] - 1)
        if not status and request.transport is not None:
            request.transport.abort()
        return web.Response(status=status or 500)

    app = web.Application()
    app.router.add_post("/callbacks", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_everything_is_sent_until_it_is_answered_and_the_end_of_a_session_last():
    arrivals: list[str] = []

    async def moody(tag: str, before: int) -> int:
        if before == 0 and hash(tag) % 3:
            return 503 if hash(tag) % 2 else 0
        arrivals.append(tag)
        return 200

    noted: list[Answer] = []
    async with server(moody) as first, server(moody) as second:
        traffic = Traffic([("a", first), ("b", second)], seed=3, rate=400.0, note=noted.append)
        await asyncio.wait_for(traffic.play(0.5, asyncio.Event()), 60)

    answered: defaultdict[str, list[Answer]] = defaultdict(list)
    for asked in noted:
        answered[asked.session].append(asked)
    begun = [
        session for session in islice(sessions(3), SESSIONS) if session and session[0].session in answered
    ]
    assert len(begun) > 5
    assert traffic.answered.keys() == {event.tag for session in begun for event in session}
    assert traffic.given_up == 0
    assert {asked.status for asked in noted} == {0, 200, 503}
    repeats = [event.tag for session in begun for event in session if event.repeat]
    assert repeats
    assert all(arrivals.count(tag) == 2 for tag in repeats)
    for session in begun:
        ends = [event.tag for event in session if event.ends_session]
        others = [asked.ended for asked in answered[session[0].session] if asked.tag not in ends]
        for asked in answered[session[0].session]:
            assert asked.tag not in ends or asked.began >= max(others) or asked.tag in repeats


async def test_a_stop_leaves_the_rest_unsent():
    stop = asyncio.Event()

    async def hang(_tag: str, _before: int) -> int:
        stop.set()
        await asyncio.sleep(60)
        return 200

    async with server(hang) as port:
        traffic = Traffic([("a", port)], seed=1, rate=100.0, note=lambda _: None)
        await asyncio.wait_for(traffic.play(60, stop), 20)
    assert not traffic.answered
    assert traffic.under_way == 0
