"""The dispatcher tells whose numbers are to be hidden, and for how long."""

import asyncio
import threading

import pytest

from maskline import Context, on
from maskline.runtime.logs import known_numbers
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.events import Event, SessionTimeout
from maskline.schemas.privacy import number_token
from maskline.testing import Harness, callback

NUMBER = "+447700900123"
STATE = {}


@on.every(retries=0)
async def waits(event: Event, _ctx: Context) -> None:
    STATE["begun"].set()
    await STATE["release"].wait()
    STATE["known"] = known()


@on.every(retries=0, timeout_ms=20)
def overruns(event: Event, _ctx: Context) -> None:
    STATE["thread"].wait(10)


def known():
    return KNOWN_NUMBERS.hide(NUMBER) == number_token(NUMBER)


def many_others():
    """So many numbers that none is known from before, but for those under way; looked at now and then."""
    for last in range(2 * (known_numbers.NUMBERS_MAX + known_numbers.NUMBERS_SPARE)):
        number = f"+1{200 + last // 100}5550{100 + last % 100}"
        KNOWN_NUMBERS.add_event(SessionTimeout(session_uuid="s", from_number=number))
        if last % 700 == 0:
            KNOWN_NUMBERS.hide("a line of some length")


@pytest.fixture
def state():
    many_others()
    STATE.update(begun=asyncio.Event(), release=asyncio.Event(), thread=threading.Event())
    yield STATE
    STATE["thread"].set()
    STATE.clear()


async def test_a_number_is_known_as_long_as_its_handler_is_under_way_and_a_while_after(state):
    state["thread"].set()
    async with Harness(__name__) as harness:
        assert not known()
        feeding = asyncio.create_task(harness.feed(callback("SessionTimeout", to_number=NUMBER)))
        await state["begun"].wait()
        assert known()
        many_others()
        assert known()
        state["release"].set()
        await feeding
        assert state["known"]
        assert known()
        many_others()
        assert not known()


async def test_number_is_known_while_a_thread_ignores_its_time_limit(state):
    state["release"].set()
    async with Harness(__name__) as harness:
        await harness.feed(callback("SessionTimeout", second_party=NUMBER))
        assert [letter.handler for letter in harness.dead_letters] == ["test_known_numbers.overruns"]
        many_others()
        assert known()
