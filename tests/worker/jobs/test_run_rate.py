"""A job's rate: what all workers together may begin, on real servers, and a worker's share of it."""

import asyncio
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import RedisServer, binary_of, server_kinds

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.jobs.run_rate import ASK_INTERVAL_S, RunRate

HOUR_US = 3_600_000_000
SLACK_US = 20_000_000
"""For a machine that stood still between two commands."""


@pytest.fixture(scope="module", params=server_kinds())
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(request.param)).start()
    yield server
    server.stop()


class Bucket:
    """The rate of one job on a server."""

    def __init__(self, connection, client) -> None:
        self.connection, self.client = connection, client
        self.keys = Keys(f"test-{uuid.uuid4().hex[:12]}", "workers")

    async def take(self, runs: int, *, each_us: float = HOUR_US) -> int:
        (reply,) = await self.connection.send(scripts.take_runs(self.keys, "bado", each_us, runs), 1)
        return int(reply)


@pytest.fixture
async def bucket(server):
    with server.client() as client:
        connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
        await scripts.load_scripts(connection)
        yield Bucket(connection, client)
        connection.close()


@pytest.mark.server
async def test_runs_are_given_at_once_and_then_none_until_they_are_paid_off(bucket) -> None:
    assert await bucket.take(12) == 0
    wait_us = await bucket.take(1)
    assert 12 * HOUR_US - SLACK_US < wait_us <= 12 * HOUR_US
    assert await bucket.take(500) <= wait_us


@pytest.mark.server
async def test_what_is_paid_off_in_no_time_is_given_again(bucket) -> None:
    async with asyncio.timeout(SLACK_US / 1e6):
        for _ in range(20):
            while await bucket.take(1, each_us=1_000):
                await asyncio.sleep(0.001)


@pytest.mark.server
async def test_the_key_of_a_rate_expires_when_all_is_paid_off(bucket) -> None:
    await bucket.take(2)
    left_ms = bucket.client.pttl(bucket.keys.job_rate("bado"))
    assert (2 * HOUR_US - SLACK_US) / 1000 < left_ms <= 2 * HOUR_US / 1000 + 1000


@pytest.mark.server
async def test_a_clock_that_was_set_back_stops_no_job(bucket) -> None:
    now_us = int(bucket.client.time()[0]) * 1_000_000
    bucket.client.set(bucket.keys.job_rate("bado"), now_us + 5_000 * HOUR_US)
    assert await bucket.take(1) == 0


def test_without_a_bound_everything_may_begin() -> None:
    rate = RunRate(0)
    assert rate.take(10_000)
    assert rate.microseconds_each == 0


def test_a_worker_asks_for_what_a_tenth_of_a_second_brings() -> None:
    rate = RunRate(500)
    assert not rate.take(3)
    assert rate.asks_for(3, 0.0) == 50
    rate.granted(50)
    assert rate.take(3)
    assert rate.take(47)
    assert not rate.take(1)
    assert rate.wait_s(0.0) == ASK_INTERVAL_S
    assert rate.wait_s(1.0) == 0
    assert rate.asks_for(60, 1.0) == 60


def test_a_worker_that_was_refused_waits_as_long_as_redis_says() -> None:
    rate = RunRate(0.5)
    assert rate.asks_for(1, 10.0) == 1
    rate.refused(2_000_000, 10.0)
    assert rate.wait_s(10.5) == 1.5
    assert rate.microseconds_each == 2_000_000


@given(
    st.floats(0.1, 2_000),
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.5)), min_size=1, max_size=60),
)
def test_runs_never_begin_faster_than_the_rate_by_more_than_one_question(
    rate: float, steps: list[tuple[int, float]]
) -> None:
    share, now, paid_off, begun, asked = RunRate(rate), 0.0, 0.0, 0, [float("-inf")]
    for runs, pause in steps:
        if not share.take(runs) and share.wait_s(now) == 0:
            assert now >= asked[-1] + ASK_INTERVAL_S
            asked.append(now)
            wanted = share.asks_for(runs, now)
            if paid_off <= now:
                paid_off = now + wanted / rate
                share.granted(wanted)
                assert share.take(runs)
                begun += runs
            else:
                share.refused(int((paid_off - now) * 1e6), now)
        assert begun <= now * rate + max(40, rate * ASK_INTERVAL_S + 1) + 40
        now += pause
