"""`@on.dead`: what it takes, and how handlers of dead letters are loaded and bound."""

from contextlib import asynccontextmanager

import pytest
from registry_kit import handler, module, refused

from maskline import on, resource
from maskline.schemas.errors import ConfigError
from maskline.worker.api.binding import bind, bind_dead
from maskline.worker.api.handler_options import NAME_MAX_BYTES
from maskline.worker.api.loading import load_handlers


def dead(**options):
    @on.dead(**options)
    async def alert(letter, ctx):
        pass

    return alert


def test_handlers_of_dead_letters_are_bound_apart_from_those_of_events():
    @on.dead
    async def bare(letter, ctx):
        pass

    handlers = load_handlers([module(h=handler(), a=dead(timeout_ms=1_500, name="alert"), b=bare)])
    first, second = bind_dead(handlers, {})
    assert (first.name, first.timeout_s) == ("alert", 1.5)
    assert (second.name, second.timeout_s) == (f"{__name__}.{bare.__qualname__}", 30.0)
    names = {it.name for those in bind(handlers, {}).values() for it in those}
    assert "alert" not in names
    assert len(names) == 1


def test_marking_changes_nothing_a_caller_would_see():
    async def alert(letter, ctx):
        return 7

    assert on.dead(alert) is alert
    assert on.dead(timeout_ms=1)(alert) is alert


async def test_they_take_resources_as_others_do():
    @resource
    @asynccontextmanager
    async def pager():
        yield "a pager"

    @on.dead(name="alert")
    async def alert(letter, ctx, pager):
        return letter, pager

    (bound,) = bind_dead(load_handlers([module(h=handler(), a=alert, pager=pager)]), {"pager": "a pager"})
    assert await bound.call("a letter", None) == ("a letter", "a pager")
    assert "no resource fills its parameter pager" in refused(module(h=handler(), a=alert))


def test_one_that_several_modules_import_is_called_once():
    shared = dead()
    handlers = load_handlers([module(h=handler(), a=shared, b=shared), module(c=shared)])
    assert len(handlers.dead_specs) == 1


def test_a_module_of_them_alone_is_one_of_handlers_beside_another():
    handlers = load_handlers([module(h=handler()), module(a=dead())])
    assert (len(handlers.specs), len(handlers.dead_specs)) == (1, 1)
    assert "there is no handler; mark a function with @on" in refused(module(a=dead()))


def test_names_are_not_shared_with_each_other_or_with_handlers_of_events():
    assert "two handlers are called x" in refused(module(h=handler(name="x"), a=dead(name="x")))
    assert "two handlers are called x" in refused(module(h=handler(), a=dead(name="x"), b=dead(name="x")))


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_wrong_time_limits_are_refused(value):
    with pytest.raises(ConfigError, match=r"@on\.dead: timeout_ms must be"):
        on.dead(timeout_ms=value)


@pytest.mark.parametrize("name", ["", " ", 7, "two\nlines", "x" * (NAME_MAX_BYTES + 1)])
def test_wrong_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"@on\.dead: name must"):
        on.dead(name=name)


def test_plain_functions_generators_and_methods_are_refused():
    with pytest.raises(ConfigError, match="must be an async def"):

        @on.dead
        def plain(letter, ctx):
            pass

    with pytest.raises(ConfigError, match="must not yield"):

        @on.dead
        async def yields(letter, ctx):
            yield

    with pytest.raises(ConfigError, match=r"@on\.dead marks functions"):
        on.dead(print)


def test_one_with_too_few_parameters_is_refused():
    @on.dead(name="lonely")
    async def lonely(letter):
        pass

    text = refused(module(h=handler(), a=lonely))
    assert "lonely must take a letter and a context: def handler(letter, ctx)" in text
