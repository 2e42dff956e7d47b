import asyncio
import threading
import time

import pytest
import structlog
from dispatch_kit import dispatching
from servers import wait_until
from structlog.testing import capture_logs

from maskline import on
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.events import SessionFirstPartyRinging
from maskline.worker.dispatch import watchdog
from maskline.worker.dispatch.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    structlog.reset_defaults()
    monkeypatch.setattr(watchdog, "BLOCKED_AFTER_S", 0.15)
    monkeypatch.setattr(watchdog, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(watchdog, "_log", structlog.get_logger())


async def test_a_blocked_loop_is_reported_while_it_is_blocked_once_with_the_handler_and_the_line():
    blocks = []

    def block_the_loop():
        wait_until(lambda: blocks, what="the watchdog")

    @on(SessionFirstPartyRinging, name="innocent")
    async def innocent(event, ctx):
        await asyncio.sleep(0)

    @on(SessionFirstPartyRinging, name="guilty")
    async def guilty(event, ctx):
        await asyncio.sleep(0)
        block_the_loop()
        blocks.append("still blocked: reported no second time")
        time.sleep(0.3)  # noqa: ASYNC251 - that is the fault in question

    with capture_logs() as logs:
        async with dispatching(innocent, guilty) as d:
            dog = Watchdog(d.dispatcher.handler_on_loop, lambda: blocks.append("reported"), BackgroundTasks())
            d.feed(("s", 1))
            await d.until_handled()
            dog.stop()
    assert blocks == ["reported", "still blocked: reported no second time"]
    (entry,) = [entry for entry in logs if "blocked" in entry["event"]]
    assert entry["handler"] == "guilty"
    assert any("block_the_loop" in frame and "test_watchdog.py" in frame for frame in entry["at"])


async def test_a_loop_that_turns_is_left_alone():
    blocks = []
    dog = Watchdog(lambda: "handler", lambda: blocks.append("reported"), BackgroundTasks())
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        time.sleep(0.002)  # noqa: ASYNC251 - busy, and yet it turns
        await asyncio.sleep(0)
    dog.stop()
    assert blocks == []


async def test_each_block_is_reported():
    blocks = []
    with capture_logs():
        dog = Watchdog(lambda: "", lambda: blocks.append("reported"), BackgroundTasks())
        for count in (1, 2):
            wait_until(lambda count=count: len(blocks) == count, what="the watchdog")
            await asyncio.sleep(0.05)  # the loop turns again
        dog.stop()
    assert len(blocks) == 2


async def test_thread_of_the_watchdog_ends_with_it():
    before = set(threading.enumerate())
    dog = Watchdog(lambda: "", lambda: None, BackgroundTasks())
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    dog.stop()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
