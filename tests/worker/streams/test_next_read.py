"""The next read is sent when it is due, earlier when it is hastened, never before it may be, and never twice."""

import asyncio
import math
from time import monotonic

import pytest
from dispatch_kit import until

from maskline.worker.streams.next_read import NextRead

FAR_S = 3_600.0


@pytest.fixture
def sent():
    return []


async def test_read_that_is_due_is_sent_at_once(sent):
    future = NextRead().schedule(lambda: sent.append(1), earliest_at=0.0, latest_at=0.0)
    assert sent == [1]
    assert future.done()


async def test_read_that_may_wait_is_sent_once_it_is_hastened_and_only_once(sent):
    following = NextRead()
    future = following.schedule(lambda: sent.append(1), earliest_at=0.0, latest_at=monotonic() + FAR_S)
    following.hasten()
    assert sent == [], "not within the caller's call"
    await future
    following.hasten()
    await asyncio.sleep(0)
    assert sent == [1]


async def test_read_is_hastened_by_what_came_before_it_was_scheduled(sent):
    following = NextRead()
    await following.schedule(lambda: sent.append(1), earliest_at=0.0, latest_at=0.0)
    following.hasten()  # before the poller has seen that there was nothing to read
    future = following.schedule(lambda: sent.append(2), earliest_at=0.0, latest_at=math.inf)
    await until(future.done)
    following.schedule(lambda: sent.append(3), earliest_at=0.0, latest_at=math.inf)
    await asyncio.sleep(0)
    assert sent == [1, 2]


async def test_read_is_sent_though_each_turn_of_the_loop_hastens_it(sent):
    following, loop = NextRead(), asyncio.get_running_loop()
    following.schedule(lambda: sent.append(1), earliest_at=0.0, latest_at=math.inf)

    def hasten(turns_left):
        if turns_left and not sent:
            loop.call_soon(hasten, turns_left - 1)
            following.hasten()

    hasten(turns_left=100)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sent == [1]


async def test_read_is_not_hastened_beyond_its_earliest_time(sent):
    following = NextRead()
    earliest_at = monotonic() + 0.02
    future = following.schedule(
        lambda: sent.append(monotonic()), earliest_at=earliest_at, latest_at=monotonic() + FAR_S
    )
    following.hasten()
    await future
    assert sent[0] >= earliest_at - 0.002, "loops know milliseconds"


async def test_cancelled_read_is_not_sent(sent):
    following = NextRead()
    following.schedule(lambda: sent.append(1), earliest_at=0.0, latest_at=monotonic() + 0.001)
    following.cancel()
    after = following.schedule(lambda: sent.append(2), earliest_at=0.0, latest_at=monotonic() + 0.002)
    await until(after.done)
    assert sent == [2]


async def test_error_in_sending_reaches_the_one_who_waits():
    def fail():
        raise LookupError("a fault")

    with pytest.raises(LookupError):
        await NextRead().schedule(fail, earliest_at=0.0, latest_at=monotonic() + 0.001)
