"""Which resource fills which parameter of a handler, and what is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from registry_kit import handler, module, refused

from maskline import on, resource
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import SessionTimeout
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers


class Pool:
    pass


class Cache:
    pass


@resource
async def pool() -> AsyncIterator[Pool]:
    yield Pool()


@resource
async def cache() -> AsyncIterator[Cache]:
    yield Cache()


async def call(function, *modules, **opened):
    bound = bind(load_handlers([*modules, module(h=function)]), opened)[SessionTimeout]
    await bound[-1].call("event", "ctx")


async def test_resources_fill_parameters_by_name_or_annotation_or_not_at_all():
    seen = []

    @on(SessionTimeout)
    async def handle(event, ctx, pool, /, *, kept: Cache, other: int = 3, **rest):
        seen.append((event, ctx, pool, kept, other, rest))

    with pytest.raises(ConfigError, match="pool must not be positional-only"):
        await call(handle, module(pool=pool, cache=cache), pool="P", cache="C")

    @on(SessionTimeout)
    async def handle(event, ctx, pool, *arguments, kept: Cache, other: int = 3, **rest):
        seen.append((event, ctx, pool, arguments, kept, other, rest))

    await call(handle, module(pool=pool, cache=cache), pool="P", cache="C")
    assert seen == [("event", "ctx", "P", (), "C", 3, {})]


async def test_a_default_gives_way_to_a_resource_of_that_name():
    seen = []

    @on(SessionTimeout)
    async def handle(event, ctx, pool=None):
        seen.append(pool)

    await call(handle, module(pool=pool), pool="P")
    await call(handle)
    assert seen == ["P", None]


def test_missing_and_ambiguous_resources_are_refused():
    @on(SessionTimeout, name="h")
    async def wants(event, ctx, connection: Pool):
        pass

    assert "no resource fills its parameter connection" in refused(module(h=wants))

    @resource
    async def second() -> AsyncIterator[Pool]:
        yield Pool()

    assert "several resources fill its parameter connection" in refused(
        module(h=wants, pool=pool, second=second)
    )


async def test_among_several_of_a_type_the_name_decides():
    @resource
    async def second() -> AsyncIterator[Pool]:
        yield Pool()

    seen = []

    @on(SessionTimeout)
    async def handle(event, ctx, second: Pool):
        seen.append(second)

    await call(handle, module(pool=pool, second=second), pool="P", second="S")
    assert seen == ["S"]


async def test_an_annotation_that_cannot_be_resolved_hides_no_other(write):
    write(
        "typed.py",
        """
        from __future__ import annotations
        from collections.abc import AsyncIterator
        from typing import TYPE_CHECKING
        from maskline.events import SessionTimeout
        from maskline import on, resource

        if TYPE_CHECKING:
            from maskline import Context

        class Pool: ...

        @resource
        async def pool() -> AsyncIterator[Pool]:
            yield Pool()

        @on(SessionTimeout)
        async def handle(event: SessionTimeout, ctx: Context, connection: Pool) -> None:
            connection.append((event, ctx))
        """,
    )
    seen = []
    (bound,) = bind(load_handlers(["typed"]), {"pool": seen})[SessionTimeout]
    await bound.call("event", "ctx")
    assert seen == [("event", "ctx")]


async def test_resources_open_and_close_as_context_managers():
    closed = []

    @resource
    async def generator():
        yield "generated"
        closed.append("generator")

    @resource
    @asynccontextmanager
    async def above():
        yield "above"
        closed.append("above")

    @asynccontextmanager
    @resource
    async def below() -> AsyncIterator[Pool]:
        yield "below"
        closed.append("below")

    made = module(h=handler(), generator=generator, above=above, below=below)
    handlers = load_handlers([made])
    opened = []
    for spec in handlers.resources:
        async with spec.open() as value:
            opened.append((spec.name, value))
    assert opened == [("generator", "generated"), ("above", "above"), ("below", "below")]
    assert closed == ["generator", "above", "below"]
    assert handlers.resources[2].yields is Pool


def test_wrong_resources_are_refused():
    @resource
    async def returns():
        return 1

    @resource
    async def asks(pool):
        yield 1

    @resource
    def plain():
        yield 1

    assert "async generator" in refused(module(h=handler(), returns=returns))
    assert "no parameters" in refused(module(h=handler(), asks=asks))
    assert "async generator" in refused(module(h=handler(), plain=plain))


def test_two_resources_of_one_name_are_refused():
    def make():
        @resource
        async def pool() -> AsyncIterator[Pool]:
            yield Pool()

        return pool

    one, other = make(), make()
    assert "two resources are called pool" in refused(module(h=handler(), pool=one), module(pool=other))
    handlers = load_handlers([module(h=handler(), pool=one), module(again=one)])
    assert [spec.name for spec in handlers.resources] == ["pool"]


def test_a_module_of_resources_alone_is_a_module_of_ours():
    assert len(load_handlers([module(h=handler()), module(pool=pool)]).resources) == 1
    assert "there is no handler" in refused(module(pool=pool))
