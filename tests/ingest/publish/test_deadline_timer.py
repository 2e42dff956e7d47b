"""The timer for deadlines: it fires for the earliest one, and says nothing while there is none."""

import asyncio
from math import inf

from maskline.ingest.publish.deadline_timer import DeadlineTimer


async def test_checks_at_the_earliest_deadline_and_as_often_as_it_is_told():
    loop = asyncio.get_running_loop()
    begun, checked = loop.time(), []
    ended = loop.create_future()

    def check() -> float:
        checked.append(loop.time())
        if len(checked) == 3:
            ended.set_result(None)
            return inf
        return loop.time() + 0.01

    timer = DeadlineTimer(loop, check)
    timer.watch(inf)
    timer.watch(begun + 600)
    timer.watch(begun + 0.01)
    timer.watch(begun + 300)  # later than the one it waits for
    async with asyncio.timeout(60):
        await ended
    assert len(checked) == 3
