"""Every mistake in a handler module is one line with its file and line, and all mistakes of all modules are found."""

import os
import signal
import sys
import textwrap

import pytest
from registry_kit import A_HANDLER

from maskline.schemas.errors import HandlerModulesError
from maskline.worker.api.loading import load_handlers, survey

HEAD = """\
from maskline import on, resource
from maskline.events import Event, SessionTimeout, SessionPartiesHangup
"""
"""Two lines: what follows begins in line 3."""

FINE = "@on(SessionTimeout)\nasync def fine(event, ctx): ...\n"


def mistakes(*names):
    with pytest.raises(HandlerModulesError) as caught:
        load_handlers(names)
    lines = [str(mistake) for mistake in caught.value.mistakes]
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert str(caught.value).startswith(lines[0])
    return lines


DECLARATIONS = {
    "text": (
        '@on("SessionTimeout")\nasync def f(e, c): ...',
        3,
        "import SessionTimeout and name it without quotes",
    ),
    "misspelled text": ('@on("sessionTimeot")\nasync def f(e, c): ...', 3, "did you mean SessionTimeout?"),
    "another class": ("@on(str)\nasync def f(e, c): ...", 3, "not <class 'str'>: name classes such as"),
    "an event": ('@on(SessionTimeout(session_uuid="s"))\nasync def f(e, c): ...', 3, "write SessionTimeout"),
    "no brackets": ("@on\nasync def f(e, c): ...", 3, "write @on(SessionTimeout), or @on.every"),
    "no types": ("@on()\nasync def f(e, c): ...", 3, "at least one type of event"),
    "unknown option": ("@on(SessionTimeout, retires=3)\nasync def f(e, c): ...", 3, "did you mean retries?"),
    "no such option": (
        "@on.every(colour=3)\nasync def f(e, c): ...",
        3,
        "@on has no option colour=; there are retries",
    ),
    "option of dead": ("@on.dead(timeout=3)\nasync def f(e, c): ...", 3, "did you mean timeout_ms?"),
    "out of range": (
        "@on(\n    Event,\n    retries=-1,\n)\nasync def f(e, c): ...",
        3,
        "retries must be a whole number",
    ),
    "wrong type": (
        '@on(Event, rate="fast")\nasync def f(e, c): ...',
        3,
        "rate must be a number of events per second",
    ),
    "list": ("@on([Event, SessionTimeout])\nasync def f(e, c): ...", 3, "write @on(Event, SessionTimeout)"),
    "partial": (
        "import functools\n@on.every\n@functools.partial\ndef f(e, c): ...",
        4,
        "not an object of partial: wrap it in a function",
    ),
    "name": ('@on(Event, name="")\nasync def f(e, c): ...', 3, "name must be a text"),
    "generator": ("@on.every\ndef f(e, c):\n    yield", 3, "must not yield"),
    "method": ("class C:\n    @on.every\n    def f(self, e, c): ...", 4, "move it out of the class"),
    "class": ("@on.every\nclass C: ...", 3, "wrap it in a function"),
    "dead def": ("@on.dead\ndef f(letter, ctx): ...", 3, "must be an async def"),
    "one parameter": ("@on.every\nasync def f(event): ...", 4, "must take an event and a context"),
    "no resource": (
        "@on.every\nasync def f(event, ctx, http): ...",
        4,
        "no resource fills its parameter http; write a",
    ),
    "near resource": (
        "@resource\nasync def http():\n    yield 1\n@on.every\nasync def f(event, ctx, htpp): ...",
        7,
        "no resource fills its parameter htpp; did you mean http?",
    ),
    "resource with parameters": (
        "@resource\nasync def pool(size):\n    yield 1",
        4,
        "must take no parameters",
    ),
    "resource without yield": ("@resource\nasync def pool():\n    return 1", 4, "but yields nothing"),
    "plain resource": ("@resource\ndef pool():\n    yield 1", 4, "but is no async def"),
    "class as resource": ("@resource\nclass Pool: ...", 3, "@resource marks functions"),
    "same function": (
        "@on.every\nasync def f(e, c): ...\n\n@on.every\ndef f(e, c): ...",
        7,
        "(the other: shop.py:4)",
    ),
    "same name": (
        '@on.every(name="a")\nasync def f(e, c): ...\n@on.every(name="a")\nasync def g(e, c): ...',
        6,
        "two handlers are called a: give one of them another name= (the other: shop.py:4)",
    ),
    "twice": (
        "@on.every\n@on(SessionTimeout)\nasync def f(e, c): ...",
        5,
        "marked twice for SessionTimeout",
    ),
    "lost to a decorator": (
        "def log(f):\n    return lambda e, c: f(e, c)\n@log\n@on.every\nasync def f(e, c): ...",
        7,
        "functools.wraps",
    ),
}


@pytest.mark.parametrize(("source", "line", "said"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_mistake_in_a_declaration(write, source, line, said):
    path = write("shop.py", HEAD + source + "\n\n" + FINE)
    for name in ("shop", "shop.py"):
        (found,) = mistakes(name)
        assert found.startswith(f"shop.py:{line}: ")
        assert said in found
    path.write_text(textwrap.dedent(A_HANDLER) + "#" * 200)
    load_handlers(["shop"])  # nothing of the mistakes stayed behind


IMPORTS = {
    "error": ("x = 1\n1 / 0", 2, "ZeroDivisionError: division by zero; move what may fail out of"),
    "in a helper": ("def f():\n    int('x')\nf()", 2, "ValueError: invalid literal"),
    "in a library": ("import json\n\njson.loads('{')", 3, "JSONDecodeError"),
    "syntax": ("x = 1\ndef (", 2, "SyntaxError: invalid syntax; Python cannot read"),
    "decorator": ("from maskline import on\n@on.evry\ndef f(e, c): ...", 2, "no attribute 'evry'; did you mean every?"),
    "indentation": ("def f():\nreturn 1", 2, "IndentationError"),
    "no module": ("import os\nimport no_such_library", 2, "no module no_such_library; correct the name, or install"),
    "no submodule": ("import json.nothing", 1, "there is no module json.nothing"),
    "of maskline": ("from maskline.event import Event", 1, "did you mean maskline.events?"),
    "misspelled event": (
        "from maskline.events import SessionSecondPartyHangUp", 1, "did you mean SessionSecondPartyHangup?",
    ),
    "event elsewhere": ("from maskline import SessionTimeout", 1, "write from maskline.events import SessionTimeout"),
    "not imported": ("from maskline import on\non(SessionTimeout)", 2, "write from maskline.events import Session"),
    "not defined": ("from maskline import on\non(SessionTimeot)", 2, "did you mean SessionTimeout?"),
    "exit": ("raise SystemExit(3)", 1, "SystemExit: 3 at import ends no process"),
    "sys.exit": ("import sys\nsys.exit()", 2, "take it out of the module's level"),
    "lines": ("raise ValueError('one\\ntwo')", 1, "ValueError: one two"),
    "secret": ("raise OSError('redis://me:hush@db/0, +1 415 555 0123')", 1, "redis://***@db/0, num_"),
    "text raises": ("class E(Exception):\n    def __str__(self):\n        1 / 0\nraise E", 4, "E; move"),
    "latin-1": (b"x = 1\ny = '\xe9'\n", 2, "save the file as UTF-8"),
    "null": (b"x = 1\ny = '\0'\n", 2, "save the file as UTF-8"),
    "no handler": ("x = 1", 1, "shop declares no handler: mark a function with @on"),
    "empty": ("", 1, "shop declares no handler"),
    "recursion": ("def f():\n    f()\nf()", 2, "RecursionError"),
    "cancelled": ("import asyncio\nraise asyncio.CancelledError", 2, "CancelledError"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "line", "said"), IMPORTS.values(), ids=IMPORTS)
def test_mistake_that_ends_the_import(write, source, line, said):
    write("shop.py", "").write_bytes(source if isinstance(source, bytes) else source.encode())
    for name in ("shop", "shop.py"):
        (found,) = mistakes(name)
        assert found.startswith(f"shop.py:{line}: ")
        assert said in found
        assert "hush" not in found


def test_mistake_in_a_module_that_a_handler_module_imports(write):
    write("lib/__init__.py", "")
    write("lib/rates.py", "RATES = {}\nRATES['x']\n")
    write("shop.py", HEAD + "from lib.rates import RATES\n" + FINE)
    (found,) = mistakes("shop")
    assert found.startswith("lib/rates.py:2: KeyError: 'x'")


def test_modules_that_import_each_other(write):
    write("a.py", HEAD + "from b import rate\n" + FINE)
    write("b.py", "import os\nfrom a import fine\nrate = 1\n")
    (found,) = mistakes("a")
    assert found.startswith("b.py:2: ")
    assert "two modules import each other: move what both need into a third" in found


def test_all_mistakes_of_all_modules_are_found(write):
    write("a.py", HEAD + '@on("X")\nasync def f(e, c): ...\n@on(retires=1)\nasync def g(e): ...\n' + FINE)
    write("b.py", "1 / 0")
    write("c.py", HEAD + "@on.every\nasync def f(e): ...\n")
    starts = [line[:7] for line in mistakes("a", "nowhere", "b", "c")]
    assert starts == ["a.py:3:", "a.py:5:", "a.py:5:", "MASKLIN", "b.py:1:", "c.py:4:"]


def test_wrong_option_hides_no_other_mistake_of_its_handler_or_its_module(write):
    http = "@resource\nasync def http(): yield 1\n"
    write("shop.py", HEAD + http + "@on.every(rate=0, name='')\nasync def f(event, ctx, htp): ...\n" + FINE)
    write("void.py", "x = 1")
    assert [line.split("; ")[0] for line in mistakes("shop", "void")] == [
        "shop.py:5: @on: rate must be a number of events per second, more than 0, not 0",
        "shop.py:5: @on: name must be a text, not ''",
        "void.py:1: void declares no handler: mark a function with @on",
        "shop.py:6: the handler shop.f: no resource fills its parameter htp",
    ]


def test_parameter_that_nothing_fills_is_told_beside_a_module_that_cannot_be_imported(write):
    write("pools.py", "@resource\nasync def http(): yield 1\n")
    write("shop.py", HEAD + "@on.every\nasync def f(event, ctx, http, stor): ...")
    found = mistakes("shop", "pools")
    assert [line[:11] for line in found] == ["pools.py:1:", "shop.py:4: "]
    assert "parameter stor; write a @resource of this name" in found[1]


def test_resource_that_cannot_be_marked_is_one_mistake(write):
    write("shop.py", HEAD + "@resource\nclass pool: ...\n@on.every\nasync def f(event, ctx, pool): ...")
    (found,) = mistakes("shop")
    assert found.startswith("shop.py:3: @resource marks functions, not the class pool")


def test_handler_that_a_package_names_without_its_resource(write):
    write("pack/__init__.py", "from .fares import settle")
    write(
        "pack/fares.py",
        HEAD + "@resource\nasync def http(): yield 1\n@on.every\nasync def settle(event, ctx, http): ...",
    )
    (found,) = mistakes("pack")
    assert found.startswith(
        "pack/fares.py:6: the handler pack.fares.settle: no resource fills its parameter http"
    )
    assert found.endswith("import it beside the handler, or name pack.fares as a module too")
    load_handlers(["pack", "pack.fares"])


def test_what_a_module_with_mistakes_would_declare_is_not_missed(write):
    write("pools.py", HEAD + '@resource\nasync def http(): yield 1\n@on("X")\nasync def f(e, c): ...\n1 / 0')
    write("shop.py", HEAD + "@on.every\nasync def f(event, ctx, http): ...")
    assert [line[:11] for line in mistakes("shop", "pools")] == ["pools.py:5:", "pools.py:7:"]


def test_two_handlers_of_one_name_in_two_modules(write):
    for name in ("a", "b"):
        write(f"{name}.py", HEAD + '\n@on.every(name="settle")\nasync def f(e, c): ...\n')
    (found,) = mistakes("a", "b")
    assert found.startswith("b.py:5: two handlers are called settle")
    assert found.endswith("(the other: a.py:5)")


NAMES = {
    "no/such.py": "no/such.py: there is no such file; correct the path",
    "shopp.py": "there is no such file; did you mean shop.py?",
    "shopp": "there is no module shopp; did you mean shop?",
    "no.such.module": "there is no module no.such.module (no is not found); correct the name, or install",
    "shop.fares": "there is no module shop.fares, as shop is a single file",
    "pack.fars": "there is no module pack.fars; did you mean pack.fares?",
    "pack": "pack declares no handler: name a module in it, as pack.fares",
    "folder": "folder declares no handler: name a module in it, as folder.calls",
    "pack/": "pack/ is a directory: name modules in it, as pack/fares.py",
    "pack/fares": "pack/fares is no module: write pack.fares, or the file's path with .py",
    ".": ". is a directory: name modules in it, as pack, redis.py",
    "redis": "redis.py cannot be imported under this name",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_to_no_module(write, name):
    for file in ("shop.py", "redis.py", "pack/fares.py", "folder/calls.py"):
        write(file, A_HANDLER)
    write("pack/__init__.py", "")
    write("test_shop.py", "")
    (found,) = mistakes(name)
    assert found.startswith("MASKLINE_HANDLERS: ")
    assert NAMES[name] in found


def test_ctrl_c_is_no_mistake_of_the_module_where_python_handles_it(write):
    write("slow.py", f"import os, signal\nos.kill({os.getpid()}, signal.SIGINT)\nfor _ in iter(int, 1): pass")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_handlers(["slow"])
        signal.signal(signal.SIGINT, lambda *_: None)
        write("rude.py", "raise KeyboardInterrupt")
        (found,) = mistakes("rude")
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.startswith("rude.py:1: KeyboardInterrupt")


def test_module_that_replaces_itself(write):
    write("odd.py", "import sys\nsys.modules[__name__] = 7")
    (found,) = mistakes("odd")
    assert "odd puts another object in its place" in found
    sys.modules.pop("odd", None)


def test_handler_inside_a_function_is_told_apart_from_one_that_is_lost(write):
    write(
        "shop.py",
        HEAD + "def make():\n    @on.every\n    async def g(e, c): ...\n    return g\nmake()\n" + FINE,
    )
    found = survey(["shop"])
    assert not found.mistakes
    assert [it.place.line for it in found.nested] == [4]
    write(
        "used.py", HEAD + "def make():\n    @on.every\n    async def g(e, c): ...\n    return g\ng = make()\n"
    )
    assert not survey(["used"]).nested
