"""Suspects with crashes run solo; what marks and sandbox runs do is shown by real workers, in test_crash_loops."""

import asyncio

from maskline.worker.dispatch.quarantine import SoloQueue
from maskline.worker.dispatch.time_limits import Attempt


async def test_suspects_with_crashes_run_one_after_the_other_in_their_order():
    task = asyncio.current_task()
    assert task is not None
    started: list[str] = []
    queue = SoloQueue(started.append)  # type: ignore[arg-type]
    for session in "abc":
        assert not queue.admit(session, Attempt(task))  # type: ignore[arg-type]
    assert started == ["a"]
    solo = Attempt(task)
    solo.solo = True
    assert queue.admit("a", solo), "it is its turn"  # type: ignore[arg-type]
    queue.leave(Attempt(task))
    assert started == ["a"], "an attempt that was not solo leaves nothing"
    queue.leave(solo)
    assert started == ["a", "b"]
    queue.leave(solo)
    assert started == ["a", "b"], "it has left already"
