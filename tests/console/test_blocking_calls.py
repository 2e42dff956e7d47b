"""Which calls of an async handler are found to block the event loop, by what their names mean in the module."""

import linecache

import pytest

from maskline.console.check.blocking_calls import HELPERS_DEEP_MAX, blocking_calls

HEAD = """\
import asyncio, functools, http.client, os, sqlite3, socket, subprocess, time, typing, urllib.request
from time import sleep as nap
from subprocess import run
db = sqlite3.connect(":memory:")
"""


@pytest.fixture
def found(tmp_path):
    """The names of the blocking calls in a module's handler `h`, with their lines below HEAD."""

    def found(source):
        path = tmp_path / "module.py"
        path.write_text(HEAD + source)
        linecache.checkcache(str(path))
        namespace = {"__name__": "module"}
        exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102 - the test's own text
        first = HEAD.count("\n")
        return [(call.place.line - first, call.name) for call in blocking_calls(namespace["h"])]

    return found


def body(*lines):
    return "async def h(event, ctx):\n" + "".join(f"    {line}\n" for line in lines)


BLOCKING = {
    "time.sleep(1)": "time.sleep",
    "nap(1)": "time.sleep",
    "run(['true'])": "subprocess.run",
    "os.system('true')": "os.system",
    "urllib.request.urlopen('http://x')": "urllib.request.urlopen",
    "socket.create_connection(('x', 1))": "socket.create_connection",
    "db.execute('select 1')": "sqlite3.Connection.execute",
    "sqlite3.connect('x')": "sqlite3.connect",
    "http.client.HTTPSConnection('x').request('GET', '/')": "http.client.HTTPConnection",
    "input()": "builtins.input",
    "asyncio.run(h(1, 2))": "asyncio.runners.run",
    "x = [time.sleep(1) for _ in event]": "time.sleep",
    "x = nap; x(1)": "time.sleep",
    "subprocess.Popen(['true']).wait()": "subprocess.Popen.wait",
    "p = subprocess.Popen(['true']); p.communicate()": "subprocess.Popen.communicate",
    "import boto3; boto3.client('s3')": "boto3.client",
    "import requests; requests.get('x')": "requests.get",
    "from requests import get as fetch; fetch('x')": "requests.get",
    "import redis; r = redis.Redis()": "redis.Redis",
}


@pytest.mark.parametrize("line", BLOCKING)
def test_blocking_call_is_found(found, line):
    assert (2, BLOCKING[line]) in found(body(line))


@pytest.mark.parametrize(
    "lines",
    [
        ["await asyncio.sleep(1)"],
        ["await asyncio.to_thread(time.sleep, 1)"],
        ["await asyncio.to_thread(functools.partial(nap, 1))"],
        ["await asyncio.to_thread(lambda: time.sleep(1))"],
        ["def work():", "    time.sleep(1)", "await asyncio.to_thread(work)"],
        ["time = event", "time.sleep(1)"],
        ["for nap in event: nap(1)"],
        ["open('x').read()"],
        ["subprocess.Popen(['true'])"],
        ["if typing.TYPE_CHECKING: nap(1)"],
        ["if 0: nap(1)", "else: pass"],
        ["for _ in event:", "    continue", "    nap(1)", "return", "nap(1)"],
        ["await asyncio.get_running_loop().run_in_executor(None, nap, 1)"],
        ["import anyio; await anyio.to_thread.run_sync(nap, 1)"],
        ["import redis.asyncio as redis; r = redis.Redis(); await r.get('x')"],
        ["event.sleep(1); ctx.log.info('x')"],
    ],
)
def test_what_blocks_nothing_here_is_not(found, lines):
    assert found(body(*lines)) == []


def test_functions_of_the_user_s_mean_what_they_are(found):
    assert found("def sleep(s): ...\n" + body("sleep(1)")) == []
    assert found("class time:\n    def sleep(s): ...\n" + body("time.sleep(1)")) == []


def test_helpers_are_followed_where_they_are_called(found):
    helper = "def pause():\n    time.sleep(1)\n"
    assert found(helper + body("pause()")) == [(2, "time.sleep")]
    assert found(helper + body("await asyncio.to_thread(pause)")) == []
    assert found(body("def pause():", "    nap(1)", "pause()")) == [(3, "time.sleep")]
    assert found("async def pause():\n    time.sleep(1)\n" + body("await pause()")) == [(2, "time.sleep")]
    assert found("def pause():\n    yield time.sleep(1)\n" + body("return pause")) == []
    method = "class Fares:\n    def settle(self):\n        time.sleep(1)\nfares = Fares()\n"
    assert found(method + body("fares.settle()")) == [(3, "time.sleep")]
    taken = method + "async def h(event, ctx, store: Fares):\n    store.settle()\n"
    assert found(taken) == [(3, "time.sleep")]


def test_clients_are_known_wherever_they_come_from(found):
    store = (
        "class Store:\n    def __init__(self):\n        self.db = sqlite3.connect(':memory:')\n"
        "    @staticmethod\n    def rest():\n        nap(1)\n    @classmethod\n    def doze(cls):\n        nap(1)\n"
        "store = Store()\n"
        "def opened() -> sqlite3.Connection: ...\n"
    )
    lines = body("store.db.execute('x')", "store.rest(); Store.doze()", "opened().execute('x')")
    execute = "sqlite3.Connection.execute"
    assert found(store + lines) == [(6, "time.sleep"), (9, "time.sleep"), (13, execute), (15, execute)]
    optional = "async def h(event, ctx, db: sqlite3.Connection | None = None):\n    db.execute('x')\n"
    assert found(optional) == [(2, execute)]


def test_search_is_bounded(found):
    def chain(length):
        helpers = "def f0():\n    time.sleep(1)\n"
        for number in range(1, length):
            helpers += f"def f{number}():\n    f{number - 1}()\n"
        return helpers + body(f"f{length - 1}()")

    assert found(chain(HELPERS_DEEP_MAX)) == [(2, "time.sleep")]
    assert found(chain(HELPERS_DEEP_MAX + 1)) == []
    assert found("def f():\n    f()\n    g()\ndef g():\n    f()\n    nap(1)\n" + body("f()")) == [
        (6, "time.sleep")
    ]


def test_decorated_handlers_are_searched_below_their_decorators(found):
    decorator = """\
def traced(f):
    @functools.wraps(f)
    async def wrapper(*a):
        return await f(*a)
    return wrapper
@traced
"""
    assert found(decorator + body("nap(1)")) == [(8, "time.sleep")]


def test_what_a_decorator_does_is_searched_as_well(found):
    decorator = """\
def traced(f):
    @functools.wraps(f)
    async def wrapper(*a):
        nap(1)
        return await f(*a)
    return wrapper
@traced
"""
    assert found(decorator + body("pass")) == [(4, "time.sleep")]
