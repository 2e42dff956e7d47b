"""One suspect with strikes at a time."""

import asyncio

from maskline.worker.dispatch.deadlines import Attempt
from maskline.worker.dispatch.gate import Gate


async def test_sessions_with_strikes_run_one_after_the_other_in_their_order():
    task = asyncio.current_task()
    assert task is not None
    started: list[str] = []
    gate = Gate(started.append)  # type: ignore[arg-type]
    assert not gate.admit("a", Attempt(task))  # type: ignore[arg-type]
    assert not gate.admit("b", Attempt(task))  # type: ignore[arg-type]
    assert not gate.admit("c", Attempt(task))  # type: ignore[arg-type]
    assert started == ["a"]
    alone = Attempt(task)
    alone.alone = True
    assert gate.admit("a", alone), "it is its turn"  # type: ignore[arg-type]
    gate.leave(Attempt(task))
    assert started == ["a"], "somebody who was not in leaves nothing"
    gate.leave(alone)
    assert started == ["a", "b"]
    gate.leave(alone)
    assert started == ["a", "b"], "it has left already"
