"""`maskline check`: who handles what, mistakes and warnings, without Redis, whatever a module does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from check_kit import clean_environment, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskline.console.main import main
from maskline.worker.api.loading import survey

__all__ = ["write"]

MASKLINE = str(Path(sys.executable).with_name("maskline"))

SHOP = """\
from collections.abc import AsyncIterator
from maskline import Context, on, resource
from maskline.events import RecordingEvent, SessionTimeout

print("imported")

class Pool: ...

@resource
async def pool() -> AsyncIterator[Pool]:
    raise RuntimeError("nobody opens it")
    yield Pool()

@on(SessionTimeout, RecordingEvent, retries=3, rate=2.5)
async def settle(event: SessionTimeout | RecordingEvent, ctx: Context, connection: Pool) -> None: ...

@on.every(name="audit")
def audit_all(event, ctx): ...

@on.dead(timeout_ms=5_000)
async def page(letter, ctx, pool): ...
"""


def check(capsys, *arguments):
    code = main(["check", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_report_shows_handlers_in_calling_order_with_options_and_resources(write, capsys):
    write("shop.py", SHOP)
    code, out, err = check(capsys, "shop")
    assert code == 0
    assert (
        out
        == """\
SessionTimeout, SessionRecordingInitiated, SessionRecordingCompleted,
  SessionRecordingFailed
  1. shop.settle  shop.py:15
     retries=3, rate=2.5, takes pool as connection
  2. audit  shop.py:18
     in a thread
the other 18 events
  1. audit  shop.py:18
     in a thread
without a handler: CallSummary
dead letters
  - shop.page  shop.py:21
    timeout_ms=5000, takes pool
resources
  pool -> Pool  shop.py:10
"""
    )
    assert err == "imported\n1 module, 3 handlers: no mistakes\n"


def test_json_has_all_of_it_and_nothing_that_a_module_prints(write, capsys):
    write("shop.py", SHOP)
    code, out, _ = check(capsys, "shop.py", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["modules"] == ["shop"]
    assert report["events"]["SessionTimeout"] == ["shop.settle", "audit"]
    settle = report["handlers"][0]
    assert (settle["file"], settle["line"]) == ("shop.py", 15)
    assert settle["options"] == {"retries": 3, "rate": 2.5}
    assert settle["resources"] == {"connection": "pool"}
    assert [it["in_thread"] for it in report["handlers"]] == [False, True]
    assert report["dead_handlers"][0]["options"] == {"timeout_ms": 5000}
    assert report["resources"] == [{"name": "pool", "yields": "Pool", "file": "shop.py", "line": 10}]
    assert (report["mistakes"], report["warnings"]) == ([], [])


def test_mistakes_are_lines_and_exit_2(write, capsys):
    write("shop.py", SHOP + "\n@on('SessionTimeout')\nasync def late(event, ctx): ...\n")
    code, _, err = check(capsys, "shop", "nowhere")
    assert code == 2
    assert err.splitlines()[1:] == [
        (
            "shop.py:23: @on takes types of events from `maskline.events`, not the text 'SessionTimeout':"
            " import SessionTimeout and name it without quotes"
        ),
        "maskline check: there is no module nowhere; correct the name, or install the package that brings it",
        "1 module, 3 handlers: 2 mistakes",
    ]
    code, out, err = check(capsys, "shop", "--json")
    assert [(it["file"], it["line"]) for it in json.loads(out)["mistakes"]] == [("shop.py", 23)]


def test_warnings_exit_0_unless_strict(write, capsys):
    write(
        "shop.py",
        SHOP.replace("-> None: ...", "-> None:\n    time.sleep(1)").replace("print(", "import time; str("),
    )
    code, _, err = check(capsys, "shop")
    assert code == 0
    assert err.splitlines()[0].startswith(
        "shop.py:16: warning: time.sleep blocks the event loop in the async handler"
    )
    assert check(capsys, "shop", "--strict")[0] == 1
    assert check(capsys, "maskline.handlers.log", "--strict")[0] == 0


WARNED = {
    "order": (
        "@on.every\nasync def h(ctx, event): ...",
        "is called with the event first: write (event, ctx)",
    ),
    "annotation": (
        "@on(SessionTimeout)\nasync def h(event: RecordingEvent, ctx): ...",
        "is called with SessionTimeout, which its annotation of event leaves out",
    ),
    "nested": ("def f():\n    @on.every\n    def h(event, ctx): ...\nf()", "it never runs"),
}


@pytest.mark.parametrize(("source", "said"), WARNED.values(), ids=WARNED)
def test_what_cannot_be_meant_is_a_warning(write, capsys, source, said):
    write("shop.py", SHOP + source)
    code, _, err = check(capsys, "shop")
    assert code == 0
    assert said in err.splitlines()[1]


def test_modules_are_those_of_the_setting_unless_named(write, capsys, monkeypatch):
    write("shop.py", SHOP)
    monkeypatch.setenv("MASKLINE_HANDLERS", "shop")
    assert "shop.settle" in check(capsys)[1]
    assert "shop.settle" not in check(capsys, "maskline.handlers.log")[1]
    monkeypatch.setenv("MASKLINE_HANDLERS", "nowhere")
    assert check(capsys)[2].startswith("MASKLINE_HANDLERS: there is no module nowhere")


def run(directory, *arguments, **environment):
    return subprocess.run(
        [MASKLINE, *arguments],
        cwd=directory,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_process_ends_by_itself_whatever_a_module_does_at_import(write, tmp_path):
    write("hang.py", "import threading\n\nthreading.Event().wait()\n")
    write(
        "loud.py",
        "import os, sys\nos.system('echo from a child')\nos.write(1, b'from a descriptor\\n')\nsys.exit('enough')\n",
    )
    done = run(tmp_path, "check", "loud", "hang", "--timeout", "0.3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(
        "hang.py:3: the import has not ended after 0.3 s; move what waits"
    )
    done = run(tmp_path, "check", "loud", "--json")
    assert json.loads(done.stdout)["mistakes"][0]["line"] == 4


def test_worker_says_the_same_lines(write, tmp_path):
    write("shop.py", SHOP + "\n@on('X')\nasync def late(event, ctx): ...\n@on.every\nasync def h(event): ...")
    checked = run(tmp_path, "check", "shop")
    started = run(
        tmp_path,
        "worker",
        MASKLINE_HANDLERS="shop",
        MASKLINE_REDIS_URL="redis://127.0.0.1:1",
        MASKLINE_ADMIN_PORT="0",
    )
    assert started.returncode == checked.returncode == 2
    mistakes = [line for line in checked.stderr.splitlines() if line.startswith("shop.py:")]
    assert len(mistakes) == 2
    assert [line for line in started.stderr.splitlines() if "shop.py:" in line] == [
        f"maskline: {line}" for line in mistakes
    ]


def test_check_loads_nothing_of_a_node_and_no_client_of_redis(write, tmp_path):
    """What keeps it quick: the time itself depends on the machine."""
    heavy = (
        "aiohttp",
        "redis",
        "sqlite3",
        "maskline.worker.node",
        "maskline.ingest",
        "maskline.worker.testing",
    )
    write(
        "probe.py",
        f"import sys\nfrom maskline.console.main import main\ncode = main(['check'])\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)\nsys.exit(code)\n",
    )
    done = subprocess.run(
        [sys.executable, "probe.py"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_thread_that_an_import_starts_is_told_and_not_waited_for(write, tmp_path):
    write(
        "waits.py",
        "import threading\nfrom maskline import on\ndef work():\n    threading.Event().wait(60)\n"
        "threading.Thread(target=work).start()\n@on.every\nasync def h(event, ctx): ...\n",
    )
    done = subprocess.run(
        [sys.executable, "-m", "maskline", "check", "--strict", "waits"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 1
    assert "waits.py:3: warning: a thread that the import starts" in done.stderr
    assert "waits.h" in done.stdout


BLOCKS = [
    "@on(SessionTimeout)\nasync def h(event, ctx):\n    time.sleep(1)\n    g(event)\n",
    "@on.every\ndef g(event, ctx, pool): ...\n", "@on\nasync def h(event, ctx): ...\n",
    "@on(str)\ndef h(e, c): ...\n", "@resource\nasync def pool(): yield 1\n", "@resource\nclass C: ...\n",
    "@on.dead\nasync def h(*a, **k): ...\n",
    "class P:\n    __class__ = property(lambda self: 1 / 0)\n    def __getattr__(self, n): raise OSError(n)\np = P()\n",
    "@on.every\nasync def k(event, ctx):\n    p.x(); p(); p.y.z()\n    def w(): time.sleep(1)\n    w()\n",
    "class M(type):\n    def __repr__(c): raise OSError\nclass O(metaclass=M): ...\n@on(O)\ndef h(e, c): ...\n",
    "h = 7\n", "del h\n", "on = None\n", "h = on.every(lambda e, c: 1)\n", "import any\n", "from any import h\n",
    "raise h\n", "from maskline.events import Nothing\n", "import maskline.nothing\n", "raise SystemExit\n",
    "1 / 0\n", "__file__ = 7\n", "import sys; sys.modules[__name__] = None\n", "h.__name__ = '\\ud800'\n",
    "h.__qualname__ = 'a.b'\n", "h.__code__ = g.__code__\n",
    "h.__wrapped__ = h\n", "h.__module__ = None\n", "h.__annotations__ = {'event': P}\n", "__name__ = 7\n",
    "__path__ = 7\n", "raise type('E', (BaseException,), {'__str__': None})\n", "h.__signature__ = 7\n",
    "import asyncio\nclass T(asyncio.CancelledError): ...\nraise T\n", "def __getattr__(n): raise OSError(n)\n",
]  # fmt: skip
BEGINNING = "import time\nfrom maskline import on, resource\nfrom maskline.events import SessionTimeout\n"
MODULES = st.lists(st.sampled_from(BLOCKS), max_size=6).map(lambda blocks: BEGINNING + "".join(blocks))
EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(["", "(", "'", "\0", "\n", " ", "ü"]))
)


@settings(
    max_examples=int(os.environ.get("CHECK_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=MODULES, edits=st.one_of(st.just([]), EDITS))
def test_no_module_text_is_answered_by_an_exception(write, capsys, text, edits):
    for at, length, new in edits:
        text = text[:at] + new + text[at + length :]
    path = write("any.py", text)
    sys.modules.pop("any", None)
    try:
        code, _, err = check(capsys, str(path))
        assert code in (0, 2)
        assert (code == 2) == bool(survey([str(path)]).mistakes)
    finally:
        sys.modules.pop("any", None)  # hypothesis looks at all modules, and at a __file__ of 7 in vain
    assert "Traceback" not in err
    assert all(line.isprintable() for line in err.splitlines())
