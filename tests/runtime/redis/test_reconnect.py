"""Connections are opened again after a backoff, until cancelled or until a fault of our own."""

import asyncio
import contextlib

import hiredis
import pytest

from maskline.runtime.redis.reconnect import (
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    keep_connected,
    reconnect_delay_s,
)
from maskline.schemas.errors import RedisUnavailableError


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_wait_before_reconnecting_grows_to_its_bound(chance):
    waits = [reconnect_delay_s(attempt, chance) for attempt in (*range(12), 5_000)]
    assert waits == sorted(waits)
    assert RECONNECT_FIRST_S / 2 <= waits[0] <= RECONNECT_FIRST_S
    assert RECONNECT_MAX_S / 2 <= waits[-1] <= RECONNECT_MAX_S


async def test_failed_and_lost_connections_are_reported_and_opened_again():
    errors = [RedisUnavailableError("away"), hiredis.ReplyError("NOPERM"), None, None]
    opened, reported, attempted, enough = [], [], asyncio.Event(), asyncio.Event()

    async def connect():
        opened.append(attempted.is_set())
        if (error := errors.pop(0)) is not None:
            raise error

    async def wait_until_lost():
        if not errors:
            enough.set()
            await asyncio.Event().wait()
        return "lost"

    task = asyncio.create_task(
        keep_connected(connect, wait_until_lost, lambda why, error: reported.append((why, error)), attempted)
    )
    await asyncio.wait_for(enough.wait(), 20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert opened == [False, True, True, True]
    assert [(why, type(error)) for why, error in reported] == [
        ("away", RedisUnavailableError),
        ("NOPERM", hiredis.ReplyError),
        ("lost", type(None)),
    ]


async def test_fault_of_our_own_is_reported_and_raised():
    reported, attempted = [], asyncio.Event()

    async def connect():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await keep_connected(connect, connect, lambda *why: reported.append(why), attempted)
    assert reported == [("a fault in maskline: ZeroDivisionError", None)]
    assert attempted.is_set()
