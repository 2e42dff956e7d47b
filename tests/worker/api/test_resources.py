"""What handlers share, when it ends badly: the others are closed, the stop is a clean one, and the log has the name."""

import asyncio
import contextvars
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet
from servers import wait_until
from structlog.testing import capture_logs

from maskline.schemas.errors import ConfigError
from maskline.worker.api import resources
from maskline.worker.api.registry import ResourceSpec
from maskline.worker.api.resources import Resources

HANDLERS = """
import asyncio
from maskline.events import Event
from maskline import on, resource
from recording_handlers import write

@resource
async def first():
    yield 1
    write(what="closed first")

@resource
async def broken():
    yield 2
    {end}

@resource
async def last():
    yield 3
    write(what="closed last")

@on.every(name="h")
async def handle(event, ctx, first, broken, last):
    write(what="call", session=event.session_uuid)
"""

ENDS = {
    "raises": 'raise RuntimeError("no end")',
    "exits": "raise SystemExit(7)",
    "cancelled": "raise asyncio.CancelledError",
    "hangs": "await asyncio.sleep(3600)",
    "ignores": """
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
    """,
}


@pytest.mark.parametrize("how", ENDS)
def test_a_stop_closes_every_resource_and_is_clean_though_one_ends_badly(crew: Fleet, tmp_path, how):
    module = tmp_path / "users_handlers.py"
    module.write_text(HANDLERS.format(end=ENDS[how]))
    worker = crew.start(
        handlers=str(module), stop_timeout_ms=1_000, PYTHONPATH=f"{tmp_path}:{module_directory()}"
    )
    crew.put("s", 1)
    wait_until(lambda: [line for line in crew.lines() if line["what"] == "call"], within_s=PATIENCE_S)
    assert worker.terminate() == 0
    ends = [line["what"] for line in crew.lines() if line["what"].startswith("closed")]
    assert ends == ["closed last", "closed first"]
    line = worker.logged("resource not closed")
    assert line is not None
    assert line["resource"] == "broken"
    assert line["level"] == "error"
    assert worker.logged("worker stopped") is not None


def module_directory():
    return str(Path(__file__).parents[1])


def spec(name, open_):
    return ResourceSpec(name, open_, None)


class Here:
    def __init__(self, name, log, enter=None):
        self.name, self.log, self.enter = name, log, enter

    async def __aenter__(self):
        if self.enter is not None:
            raise self.enter
        self.log.append(("opened", self.name, asyncio.current_task()))
        return self.name

    async def __aexit__(self, *_):
        self.log.append(("closed", self.name, asyncio.current_task()))


@pytest.mark.parametrize("error", [OSError("away"), SystemExit(3), asyncio.CancelledError(), StopIteration()])
async def test_resource_that_cannot_be_opened_closes_those_before_it(error):
    log, it = [], Resources()
    specs = [spec("a", lambda: Here("a", log)), spec("b", lambda: Here("b", log, error))]
    with pytest.raises(ConfigError, match="the resource b could not be opened"):
        await it.open(specs)
    with capture_logs() as logs:
        await it.close()
    assert [(what, name) for what, name, _ in log] == [("opened", "a"), ("closed", "a")]
    assert not logs


async def test_a_config_error_of_a_resource_is_said_in_its_own_words():
    lacks = Here("plivo", [], ConfigError("MASKLINE_AUTH_TOKENS is empty"))
    it = Resources()
    with pytest.raises(ConfigError) as raised:
        await it.open([spec("plivo", lambda: lacks)])
    await it.close()
    assert str(raised.value) == "the resource plivo could not be opened: MASKLINE_AUTH_TOKENS is empty"


async def test_each_is_closed_in_the_task_that_opened_it_and_all_see_one_context():
    variable = contextvars.ContextVar("variable", default="")
    log, it = [], Resources()

    class Sets(Here):
        async def __aenter__(self):
            variable.set(variable.get() + self.name)
            return await super().__aenter__()

    await it.open([spec("a", lambda: Sets("a", log)), spec("b", lambda: Sets("b", log))])
    assert it.context[variable] == "ab"
    await it.close(5)
    tasks = {name: {task for _, other, task in log if other == name} for name in "ab"}
    assert [len(one) for one in tasks.values()] == [1, 1]
    assert [name for what, name, _ in log if what == "closed"] == ["b", "a"]


async def test_resources_that_hang_share_the_time_and_the_last_has_its_part(monkeypatch):
    monkeypatch.setattr(resources, "CLOSE_MIN_S", 0.2)
    log, it = [], Resources()

    class Hangs(Here):
        async def __aexit__(self, *_):
            await asyncio.sleep(3600)

    names = [spec(name, lambda name=name: Hangs(name, log)) for name in "bcde"]
    await it.open([spec("a", lambda: Here("a", log)), *names])
    with capture_logs() as logs:
        async with asyncio.timeout(60):
            await it.close()
    assert [entry["resource"] for entry in logs] == ["e", "d", "c", "b"]
    assert log[-1][:2] == ("closed", "a")
