"""Resources, and how modules are found and refused."""

import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from registry_kit import A_HANDLER, handler, module, names_for, refused

from maskline import Context, on, resource
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import Event, SessionTimeout
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers


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


# Modules


def test_module_is_loaded_by_dotted_name_from_the_working_directory(write):
    write("shop/__init__.py", "")
    write("shop/fares.py", A_HANDLER)
    assert names_for(SessionTimeout, "shop.fares") == ["shop.fares.handle"]


def test_module_is_loaded_by_path_and_imports_from_the_working_directory(write):
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
        ("from maskline import on\non()", "@on needs at least one type"),
        (
            "from maskline import on\nfrom maskline.events import Event\n@on(Event, retires=3)\nasync def f(e, c): ...",
            "unexpected keyword argument 'retires'",
        ),
        ("x = 1", "declares no handler"),
    ],
)
def test_modules_that_cannot_be_used_are_refused(write, source, said):
    write("broken.py", source)
    for name in ("broken", "broken.py"):
        text = refused(name)
        assert text.startswith("MASKLINE_HANDLERS: broken")
        assert said in text


def test_modules_that_do_not_exist_are_refused(write):
    assert refused("no.such.module").startswith("MASKLINE_HANDLERS: no.such.module cannot be imported")
    assert refused("no/such.py").startswith("MASKLINE_HANDLERS: no/such.py: there is no such file")


def test_a_file_that_failed_leaves_nothing_behind(write):
    path = write("flaky.py", "1 / 0")
    refused(str(path))
    assert "flaky" not in sys.modules
    path.write_text(textwrap.dedent(A_HANDLER) + "#" * 100)
    assert names_for(SessionTimeout, str(path)) == ["flaky.handle"]


def test_no_module_at_all_is_refused():
    assert "there is no handler" in refused()


def test_object_that_claims_every_attribute_is_no_handler():
    class Everything:
        def __getattr__(self, name):
            return ["?"]

    assert len(load_handlers([module(h=handler(), odd=Everything())]).specs) == 1


def test_default_module_loads():
    (spec,) = load_handlers(["maskline.handlers.log"]).specs
    assert spec.name == "maskline.handlers.log.log"
    assert spec.types == (Event,)
    assert Context.__name__ == "Context"


@pytest.mark.parametrize(
    "future", ["from __future__ import annotations", ""], ids=["strings", "evaluated late"]
)
def test_names_for_a_type_checker_alone_keep_no_handler_from_being_loaded(tmp_path, future):
    """Without the import from the future, Python 3.14 evaluates them only when somebody looks, and then they raise."""
    if not future and sys.version_info < (3, 14):
        pytest.skip("before Python 3.14 the module itself would not load")
    path = tmp_path / f"annotated_{bool(future)}.py"
    path.write_text(
        textwrap.dedent(f"""
            {future}
            from typing import TYPE_CHECKING, AsyncIterator
            from maskline import on, resource

            if TYPE_CHECKING:
                from nowhere import Odd

            class Pool: ...

            @resource
            async def pool() -> AsyncIterator[Pool]:
                yield Pool()

            @resource
            async def odd() -> AsyncIterator[Odd]:
                yield 1

            @on.every(name="h")
            async def handle(event: Odd, ctx: Odd, by_type: Pool, odd: Odd) -> None: ...
        """)
    )
    handlers = load_handlers([str(path)])
    (handler,) = bind(handlers, {"pool": "the pool", "odd": "the odd one"})[SessionTimeout]
    assert handler.call.keywords == {"by_type": "the pool", "odd": "the odd one"}
