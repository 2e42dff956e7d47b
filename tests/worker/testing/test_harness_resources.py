"""Resources in a harness: overridden by a test, or replaced by the twin that their module brings."""

import sys
from contextlib import asynccontextmanager
from types import ModuleType
from urllib.parse import urlencode

import pytest

from maskline import on, resource
from maskline.events import SessionPartiesHangup, UnknownEvent
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.parameters import FORM_TYPE
from maskline.testing import Harness, callback

HANGUP = callback("SessionPartiesHangup", sequence_number=1)


class Store:
    """What a resource yields."""


def store_module(opened):
    @resource
    async def store():
        opened.append("store")
        yield Store()

    @resource
    async def other():
        opened.append("other")
        yield "other"

    @on(SessionPartiesHangup)
    async def keep(event, ctx, store, other):
        opened.append((store, other))

    made = ModuleType("store_module")
    vars(made).update(store=store, other=other, keep=keep)
    for function in (store, other):
        function.__module__ = made.__name__
    return made


async def test_an_overridden_resource_is_not_opened():
    opened, mine = [], object()
    async with Harness(store_module(opened), resources={"store": mine}) as harness:
        await harness.feed(HANGUP)
    assert opened == ["other", (mine, "other")]


def test_a_resource_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="no resource is called stores; there are: store, other"):
        Harness(store_module([]), resources={"stores": None})


async def test_a_twin_takes_the_place_of_its_resource_and_reaches_the_stream_and_the_time(monkeypatch):
    opened, handled = [], []
    module = store_module(opened)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Twin:
        def __init__(self, harness):
            self.harness = harness

        def emit(self, name):
            body = urlencode({"EventName": name, "SessionUUID": "s"}).encode()
            self.harness.emit(RawCallback("POST", b"", FORM_TYPE, body, self.harness.now_ms, ""))

    @asynccontextmanager
    async def memory_store(harness):
        opened.append("twin")
        yield Twin(harness)
        opened.append("closed")

    @on(SessionPartiesHangup)
    async def emitting(event, ctx, store):
        store.emit("EmittedAtOnce")
        store.harness.call_at(store.harness.now_ms + 60_000, lambda: store.emit("EmittedLater"))

    @on(UnknownEvent)
    async def note(event, ctx, store):
        handled.append((event.event_name, store.harness.now_ms - start_ms))

    module.__harness_resources__ = {"store": memory_store}
    vars(module).update(keep=emitting, note=note)
    async with Harness(module) as harness:
        start_ms = harness.now_ms
        await harness.feed(HANGUP)
        await harness.pass_time(59.999)
        assert handled == [("EmittedAtOnce", 0)]
        await harness.pass_time(60)
        assert handled == [("EmittedAtOnce", 0), ("EmittedLater", 60_000)]
    assert opened == ["twin", "other", "closed"]
