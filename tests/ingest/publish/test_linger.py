"""When the event loop stands still for requests to gather, and what that spares Redis."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ingest_kit import Client, Request, node_settings, until
from servers import wait_until

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight
from maskline.ingest.publish import linger as linger_module
from maskline.ingest.publish.linger import LINGER_FULL, LINGER_MAX_S, Linger, linger_until_s
from maskline.ingest.publish.pool import PublisherPool
from maskline.runtime.process.event_loop import loop_factory
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys

counts = st.integers(1, 2 * LINGER_FULL)


@given(st.floats(0, 1e6), counts)
def test_loop_stands_still_for_a_bounded_time_and_for_less_the_more_callbacks_there_were(woke_s, callbacks):
    until_s = linger_until_s(woke_s, callbacks, 0)
    assert until_s < woke_s + LINGER_MAX_S
    assert until_s >= linger_until_s(woke_s, callbacks + 1, 0)
    assert until_s >= woke_s
    if callbacks >= LINGER_FULL:
        assert until_s == woke_s


@given(counts, st.integers(0, 200))
def test_loop_stands_still_only_if_most_senders_do_not_wait_for_answers(callbacks, from_waiting):
    assume(callbacks < LINGER_FULL)
    assert (linger_until_s(1.0, callbacks, from_waiting) > 1.0) == (from_waiting < callbacks / 2)


class Clock:
    """In the place of `time`: what sleeps only moves it on."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(linger_module, "time", clock)
    return clock


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_callbacks_far_apart_are_not_waited_for(clock):
    linger = Linger(asyncio.get_running_loop())
    for _ in range(5):
        linger.sent(1)
        await turns()
        clock.now_s += LINGER_MAX_S
    assert not clock.slept_s


async def test_loop_stands_still_once_for_all_that_was_sent_in_its_turn(clock):
    linger = Linger(asyncio.get_running_loop())
    linger.sent(1)
    await turns()
    assert not clock.slept_s
    clock.now_s += LINGER_MAX_S / 4
    linger.sent(1)
    linger.sent(1)
    assert not clock.slept_s, "what was sent is not written yet"
    await turns()
    share = 1 - 2 / LINGER_FULL
    assert clock.slept_s == [pytest.approx(LINGER_MAX_S * (share - 1 / 4))]


async def test_time_counts_from_the_last_wake_up(clock):
    linger = Linger(asyncio.get_running_loop())
    linger.sent(1)
    for _ in range(3):
        linger.sent(1)
        await turns()
    assert clock.slept_s == [pytest.approx(LINGER_MAX_S * (1 - 1 / LINGER_FULL))] * 3


async def test_senders_that_wait_for_answers_are_counted_from_the_last_wake_up(clock):
    linger = Linger(asyncio.get_running_loop())
    linger.sent(1)
    linger.from_waiting += 1
    linger.sent(2)
    await turns()
    assert not clock.slept_s
    linger.sent(1)
    await turns()
    assert len(clock.slept_s) == 1


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=loop_factory() if request.param == "uvloop" else None) as runner:
        yield runner


@pytest.mark.server
def test_batch_is_with_redis_before_the_loop_stands_still(runner, redis_server, namespace, monkeypatch):
    monkeypatch.setattr(linger_module, "LINGER_MAX_S", 1.0)
    seen_at: list[float] = []

    def watch() -> None:
        with redis_server.client() as client:
            wait_until(lambda: client.xlen(Keys(namespace).callbacks(0)) == 2, what="the second callback")
        seen_at.append(time.monotonic())

    async def publish_two() -> float:
        settings = node_settings(redis_server.url, namespace)
        pool = PublisherPool(settings, Metrics(), InFlight(), BackgroundTasks(), name="test")
        await pool.start()
        try:
            (publisher,) = pool.publishers
            await publisher.publish(0, b"first")
            await publisher.publish(0, b"second")
            return time.monotonic()
        finally:
            await pool.stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    answered_at = runner.run(publish_two())
    watcher.join()
    assert seen_at[0] < answered_at - 0.3, "it stood still for about a second, less what the start took"


@pytest.mark.server
async def test_loop_does_not_stand_still_while_earlier_replies_are_awaited(own_redis, namespace, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(Linger, "sent", lambda _linger, callbacks: sent.append(callbacks))
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=10_000)
    pool = PublisherPool(settings, Metrics(), InFlight(), BackgroundTasks(), name="test")
    await pool.start()
    try:
        (publisher,) = pool.publishers
        own_redis.pause()
        completions = []
        for number in range(3):
            completions.append(publisher.publish(0, b"value"))
            await until(lambda n=number: publisher.batches_under_way > n)
        own_redis.resume()
        await asyncio.gather(*completions)
        assert sent == [1]
    finally:
        await pool.stop()


async def ask_in_turn(port: int, number: int, count: int, pause_s: Callable[[], float]) -> None:
    """Send callbacks over one connection, each after a pause, and wait for their answers."""
    request = Request(pairs=[("SessionUUID", f"s{number}"), ("EventName", "e")]).encode()
    async with await Client.connect(port) as client:
        for _ in range(count):
            await asyncio.sleep(pause_s())
            assert (await client.ask(request)).status == 200


@pytest.mark.server
async def test_requests_that_come_often_share_appends(own_redis, namespace, run_ingest):
    """Each append on its own would cost Redis a read of its socket."""
    port = await asyncio.to_thread(run_ingest(redis_url=own_redis.url, namespace=namespace).port)
    senders, each, chance = 32, 12, random.Random(1)
    with own_redis.client() as client:
        before = client.info("stats")["total_reads_processed"]
        pause_s = partial(chance.uniform, 0, 0.032)
        await asyncio.gather(*(ask_in_turn(port, number, each, pause_s) for number in range(senders)))
        reads = client.info("stats")["total_reads_processed"] - before
    assert reads < 0.52 * senders * each, "0.6 and more without"


@pytest.mark.server
async def test_sender_that_waits_for_each_answer_is_not_waited_for(redis_server, namespace, run_ingest):
    port = await asyncio.to_thread(run_ingest(redis_url=redis_server.url, namespace=namespace).port)
    took_s = []
    for _ in range(20):
        began = time.monotonic()
        await ask_in_turn(port, 1, 20, lambda: 0)
        took_s.append((time.monotonic() - began) / 20)
    assert min(took_s) < LINGER_MAX_S * (1 - 1 / LINGER_FULL), "else each answer would take that at least"
