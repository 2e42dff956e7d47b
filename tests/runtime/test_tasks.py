import asyncio
from typing import ClassVar

import pytest

from maskline.runtime import tasks
from maskline.runtime.tasks import BackgroundTasks


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RESTART_FIRST_S", 0.001)
    monkeypatch.setattr(tasks, "RESTART_MAX_S", 0.01)


async def _within(condition, what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_work_that_raises_is_started_again_counted_and_shown():
    background, runs = BackgroundTasks(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) < 4:
            raise OSError("no descriptors")

    await background.start("drain", work)
    assert len(runs) == 4
    assert background.failures == {"drain": 3}
    assert background.failing == {"drain": "OSError"}


async def test_failure_is_forgotten_by_health_once_the_work_is_steady(monkeypatch: pytest.MonkeyPatch):
    background = BackgroundTasks()
    background.failed("drain", OSError())
    assert background.failing == {"drain": "OSError"}
    monkeypatch.setattr(tasks, "STEADY_S", 0.0)
    assert background.failing == {}
    assert background.failures == {"drain": 1}


async def test_stop_cancels_work_under_way_and_work_that_waits_for_its_restart():
    background, ended = BackgroundTasks(), []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("endless")

    async def broken() -> None:
        raise ValueError

    both = [background.start("endless", endless), background.start("broken", broken)]
    await _within(lambda: background.failures["broken"] > 2, "failures")
    await background.stop()
    assert ended == ["endless"]
    assert all(task.cancelled() for task in both)


async def test_repeated_call_goes_on_after_it_has_raised_until_cancelled():
    background, calls = BackgroundTasks(), []

    def call() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError
        if len(calls) == 4:
            repeating.cancel()

    repeating = background.every("sweep", 0.001, call)
    await _within(lambda: len(calls) == 4, "four calls")
    await asyncio.sleep(0.02)
    assert len(calls) == 4
    assert background.failures == {"sweep": 1}


async def test_same_failure_is_logged_once_an_interval(monkeypatch: pytest.MonkeyPatch):
    lines = []
    monkeypatch.setattr(tasks._log, "error", lambda event, **fields: lines.append((event, fields["task"])))
    background = BackgroundTasks()
    for _ in range(5):
        background.failed("drain", OSError())
    background.failed("drain", ValueError())
    assert lines == [("background task failed", "drain")] * 2


async def test_work_goes_on_where_its_failure_cannot_be_logged(monkeypatch: pytest.MonkeyPatch):
    class Log:
        lines: ClassVar[list[dict[str, object]]] = []

        def error(self, _event: str, **fields: object) -> None:
            if "exc_info" in fields:
                raise OSError("no descriptor to read the source with")
            self.lines.append(fields)

    monkeypatch.setattr(tasks, "_log", Log())
    background, runs = BackgroundTasks(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError

    await background.start("drain", work)
    assert len(runs) == 3
    assert Log.lines == [{"task": "drain", "failures": 1, "error": "ValueError"}]
