"""What `@on` and `@resource` take, and how modules are found: whatever is wrong is said in one line, at the start."""

import functools
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest

from schemas import (
    EVENT_TYPES,
    ConfigError,
    Event,
    RecordingEvent,
    SessionPartiesHangup,
    SessionRecordingCompleted,
    SessionSecondPartyHangup,
    SessionTimeout,
    StatusEvent,
    UnknownEvent,
)
from worker import Context, on, resource
from worker.registry import bind, load_handlers
from worker.retry import RetryPolicy


def module(**names):
    made = ModuleType("orders")
    vars(made).update(names)
    return made


def names_for(kind, *modules):
    return [handler.name for handler in bind(load_handlers(modules), {})[kind]]


def refused(*modules):
    with pytest.raises(ConfigError) as caught:
        load_handlers(modules)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def handler(kind=SessionTimeout, **options):
    @on(kind, **options)
    async def handle(event, ctx):
        pass

    return handle


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module into an empty working directory; what was imported is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name, source):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


A_HANDLER = """
    from schemas import SessionTimeout
    from worker import on

    @on(SessionTimeout)
    async def handle(event, ctx):
        pass
"""

# Options


def test_options_reach_the_bound_handler():
    made = handler(retries=3, backoff_ms=10, backoff_max_ms=99, timeout_ms=1_500, name="settle")
    (bound,) = bind(load_handlers([module(h=made)]), {})[SessionTimeout]
    assert (bound.name, bound.policy, bound.timeout_s) == ("settle", RetryPolicy(3, 10, 99), 1.5)
    assert bound.in_thread is False


def test_a_handler_is_called_by_its_module_and_function_unless_it_has_a_name():
    (spec,) = load_handlers([module(h=handler())]).specs
    assert spec.name == f"{__name__}.handler.<locals>.handle"


def test_marking_changes_nothing_a_caller_would_see():
    async def handle(event, ctx):
        return 7

    assert on(SessionTimeout)(handle) is handle
    assert on.every(handle) is handle


@pytest.mark.parametrize("option", ["retries", "backoff_ms", "backoff_max_ms", "timeout_ms"])
@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_wrong_options(option, value):
    with pytest.raises(ConfigError, match=f"@on: {option} must be") as caught:
        on(SessionTimeout, **{option: value})
    assert len(str(caught.value).splitlines()) == 1


def test_least_options():
    on(SessionTimeout, retries=0, backoff_ms=0, backoff_max_ms=0, timeout_ms=1)
    with pytest.raises(ConfigError, match="timeout_ms"):
        on(SessionTimeout, timeout_ms=0)


@pytest.mark.parametrize("name", ["", "  ", 7])
def test_a_name_must_be_a_text(name):
    with pytest.raises(ConfigError, match="name must be a text"):
        on(SessionTimeout, name=name)


@pytest.mark.parametrize("wrong", [str, "SessionTimeout", None, SessionTimeout(session_uuid="s"), object()])
def test_only_types_of_events(wrong):
    with pytest.raises(ConfigError, match="takes types of events"):
        on(SessionTimeout, wrong)


def test_on_without_types_or_brackets():
    with pytest.raises(ConfigError, match=r"use @on\.every"):
        on()
    with pytest.raises(ConfigError, match="takes types of events"):

        @on
        async def handle(event, ctx):
            pass


# Which events


def test_one_type_several_types_and_none_else():
    one = handler(name="one")

    @on(SessionTimeout, SessionPartiesHangup, name="both")
    async def both(event, ctx):
        pass

    table = bind(load_handlers([module(one=one, both=both)]), {})
    assert [h.name for h in table[SessionTimeout]] == ["one", "both"]
    assert [h.name for h in table[SessionPartiesHangup]] == ["both"]
    assert table[SessionSecondPartyHangup] == ()
    assert set(table) == {*EVENT_TYPES.values(), UnknownEvent}


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        (Event, {*EVENT_TYPES.values(), UnknownEvent}),
        (StatusEvent, {kind for kind in EVENT_TYPES.values() if issubclass(kind, StatusEvent)}),
        (RecordingEvent, {kind for kind in EVENT_TYPES.values() if issubclass(kind, RecordingEvent)}),
        (UnknownEvent, {UnknownEvent}),
        (SessionRecordingCompleted, {SessionRecordingCompleted}),
    ],
)
def test_base_classes_mean_all_below_them(kind, meant):
    table = bind(load_handlers([module(h=handler(kind))]), {})
    assert {kind for kind, handlers in table.items() if handlers} == meant
    assert meant


def test_the_two_bases_part_the_documented_events():
    known = set(EVENT_TYPES.values())
    recordings = {kind for kind in known if issubclass(kind, RecordingEvent)}
    assert len(recordings) == 3
    assert {kind for kind in known if issubclass(kind, StatusEvent)} == known - recordings


def test_every_with_and_without_options():
    @on.every
    async def bare(event, ctx):
        pass

    @on.every(retries=1, name="with options")
    async def called(event, ctx):
        pass

    @on.every()
    async def empty(event, ctx):
        pass

    handlers = load_handlers([module(bare=bare, called=called, empty=empty)])
    for bound in bind(handlers, {}).values():
        assert [h.policy.retries for h in bound] == [8, 1, 8]
    with pytest.raises(ConfigError, match="retries"):
        on.every(retries=-1)


def test_one_function_may_be_marked_with_options_of_its_own_for_each_event():
    @on(SessionTimeout, retries=1)
    @on(SessionPartiesHangup, retries=2)
    async def handle(event, ctx):
        pass

    table = bind(load_handlers([module(h=handle)]), {})
    assert [h.policy.retries for h in table[SessionTimeout]] == [1]
    assert [h.policy.retries for h in table[SessionPartiesHangup]] == [2]
    assert table[SessionTimeout][0].name == table[SessionPartiesHangup][0].name


def test_one_function_marked_twice_for_an_event_would_handle_it_twice():
    @on.every
    @on(SessionTimeout)
    async def handle(event, ctx):
        pass

    assert "marked twice for SessionTimeout" in refused(module(h=handle))


def test_unless_the_marks_have_names():
    @on.every(name="second")
    @on(SessionTimeout, name="first")
    async def handle(event, ctx):
        pass

    assert names_for(SessionTimeout, module(h=handle)) == ["second", "first"]


def test_name_clashes():
    text = refused(module(a=handler(name="settle"), b=handler(SessionPartiesHangup, name="settle")))
    assert "two handlers are called settle" in text
    assert "name=" in text


def test_order_of_declaration_within_and_over_modules():
    first = module(z=handler(name="1"), a=handler(name="2"), m=handler(name="3"))
    second = module(b=handler(name="4"))
    assert names_for(SessionTimeout, first, second) == ["1", "2", "3", "4"]
    assert names_for(SessionTimeout, second, first) == ["4", "1", "2", "3"]


def test_a_handler_that_several_modules_import_runs_once():
    shared = handler(name="shared")
    assert names_for(SessionTimeout, module(a=shared, alias=shared), module(b=shared)) == ["shared"]


# What can be marked


async def test_plain_async_and_decorated_functions():
    seen = []

    def traced(function):
        @functools.wraps(function)
        async def wrapper(*arguments, **named):
            seen.append("traced")
            return await function(*arguments, **named)

        return wrapper

    def logged(function):
        @functools.wraps(function)
        def wrapper(*arguments, **named):
            seen.append("logged")
            return function(*arguments, **named)

        return wrapper

    @on(SessionTimeout, name="inside")
    @traced
    async def inside(event, ctx):
        seen.append("inside")

    @traced
    @on(SessionTimeout, name="outside")
    async def outside(event, ctx):
        seen.append("outside")

    @logged
    @on(SessionTimeout, name="plain wrapper")
    async def behind_plain(event, ctx):
        seen.append("behind plain")

    @on(SessionTimeout, name="plain")
    def plain(event, ctx):
        seen.append("plain")

    made = module(inside=inside, outside=outside, behind_plain=behind_plain, plain=plain)
    bound = bind(load_handlers([made]), {})[SessionTimeout]
    assert [h.in_thread for h in bound] == [False, False, False, True]
    for h in bound[:3]:
        await h.call(None, None)
    assert seen == ["traced", "inside", "traced", "outside", "logged", "behind plain"]


class Class:
    def method(self, event, ctx):
        pass

    def __call__(self, event, ctx):
        pass


@pytest.mark.parametrize(
    "thing",
    [functools.partial(print), Class().method, Class(), Class, print, SessionTimeout],
    ids=["partial", "bound method", "callable", "class", "builtin", "event type"],
)
def test_what_is_no_function_is_refused_where_it_is_marked(thing):
    with pytest.raises(ConfigError, match="wrap it in a function"):
        on(SessionTimeout)(thing)
    with pytest.raises(ConfigError, match="wrap it in a function"):
        on.every(thing)


def test_a_method_would_never_be_found():
    with pytest.raises(ConfigError, match="not a method"):

        class Handlers:
            @on(SessionTimeout)
            async def handle(self, event, ctx):
                pass


def test_a_generator_would_never_run():
    with pytest.raises(ConfigError, match="must not yield"):

        @on(SessionTimeout)
        async def awaiting(event, ctx):
            yield

    with pytest.raises(ConfigError, match="must not yield"):

        @on(SessionTimeout)
        def plain(event, ctx):
            yield


def test_too_few_parameters():
    @on(SessionTimeout, name="lonely")
    async def lonely(event):
        pass

    assert "lonely must take an event and a context" in refused(module(h=lonely))


# Resources


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


async def test_resources_by_name_by_annotation_and_by_neither():
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


def test_missing_and_ambiguous_resources():
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
        from schemas import SessionTimeout
        from worker import on, resource

        if TYPE_CHECKING:
            from worker import Context

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


def test_wrong_resources():
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


def test_two_resources_of_one_name():
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


# Modules


def test_by_dotted_name_from_the_working_directory(write):
    write("shop/__init__.py", "")
    write("shop/fares.py", A_HANDLER)
    assert names_for(SessionTimeout, "shop.fares") == ["shop.fares.handle"]


def test_by_path_and_what_stands_beside_the_start_can_be_imported(write):
    write("rates.py", "RATE = 3")
    path = write("elsewhere/settle.py", "from rates import RATE\n" + textwrap.dedent(A_HANDLER))
    assert names_for(SessionTimeout, str(path)) == ["settle.handle"]


def test_one_module_named_twice_handles_once(write):
    path = write("twice.py", A_HANDLER)
    assert names_for(SessionTimeout, "twice", "twice.py", str(path)) == ["twice.handle"]


def test_files_of_one_name_or_of_a_library_s_stay_apart(write):
    paths = [write(f"{folder}/hooks.py", A_HANDLER) for folder in "abc"]
    library = write("d/sched.py", A_HANDLER)
    found = names_for(SessionTimeout, *map(str, paths), str(library))
    assert len(set(found)) == 4
    import sched

    assert hasattr(sched, "scheduler")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("from worker import on\non()", "@on needs at least one type"),
        (
            "from worker import on\nfrom schemas import Event\n@on(Event, retires=3)\nasync def f(e, c): ...",
            "unexpected keyword argument 'retires'",
        ),
        ("x = 1", "declares no handler"),
    ],
)
def test_modules_that_cannot_be_used(write, source, said):
    write("broken.py", source)
    for name in ("broken", "broken.py"):
        text = refused(name)
        assert text.startswith("MASKLINE_HANDLERS: broken")
        assert said in text


def test_modules_that_are_not_there(write):
    assert refused("no.such.module").startswith("MASKLINE_HANDLERS: no.such.module cannot be imported")
    assert refused("no/such.py").startswith("MASKLINE_HANDLERS: no/such.py: there is no such file")


def test_a_file_that_failed_leaves_nothing_behind(write):
    path = write("flaky.py", "1 / 0")
    refused(str(path))
    assert "flaky" not in sys.modules
    path.write_text(textwrap.dedent(A_HANDLER) + "#" * 100)
    assert names_for(SessionTimeout, str(path)) == ["flaky.handle"]


def test_no_module_at_all():
    assert "there is no handler" in refused()


def test_what_claims_to_have_every_attribute_is_no_handler():
    class Everything:
        def __getattr__(self, name):
            return ["?"]

    assert len(load_handlers([module(h=handler(), odd=Everything())]).specs) == 1


def test_the_default_module():
    (spec,) = load_handlers(["handlers.log"]).specs
    assert spec.name == "handlers.log.log"
    assert spec.types == (Event,)
    assert Context.__name__ == "Context"
