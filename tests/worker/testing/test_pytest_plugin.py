"""The pytest plugin in projects of users': real runs of pytest, with and without other plugins for asyncio."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HANDLERS = """
from maskline import on
from maskline.events import SessionSecondPartyHangup

@on(SessionSecondPartyHangup)
async def settle(event, ctx):
    if event.amount is None:
        raise ValueError(f"no amount for {event.from_number}")
"""

TESTS = """
import asyncio, sys
import pytest
from maskline.testing import Harness, callback

HANGUP = callback("SessionSecondPartyHangup", sequence_number=1, amount="0.0170")
BROKEN = callback("SessionSecondPartyHangup", sequence_number=1, from_number="+14155550123")
pytestmark = [pytest.mark.maskline_handlers("my_fares", gap_timeout_ms=1_000), *MARKS]

async def test_by_marker(harness: Harness) -> None:
    await harness.feed(callback("SessionTimeoutSoon", sequence_number=3))
    await harness.pass_time(1)
    await harness.feed(HANGUP)
    assert [(call.order, call.error) for call in harness.calls] == [("late", None)]

class TestClass:
    @pytest.mark.parametrize("number", [1, 2])
    async def test_method(self, number, harness):
        await harness.feed(HANGUP)
        assert len(harness.calls) == 1

async def test_fails(harness):
    await harness.feed(BROKEN)
    assert harness.calls == []

@pytest.mark.skip
async def test_skipped(harness):
    pass

@pytest.fixture
def retrying():
    return Harness("my_fares", retry_waits=True)

async def test_fixture_of_ones_own(retrying):
    await retrying.feed(BROKEN)
    assert retrying.set_aside == 1
"""

BY_INI = """
import sys
import pytest

LOADED = {*sys.modules}

def test_nothing_is_imported_before_it_is_asked_for():
    assert not {"msgspec", "structlog", "redis", "aiohttp", "maskline.worker.testing.harness"} & LOADED
    assert "maskline.worker.testing.pytest_plugin" in LOADED

async def test_by_ini(harness):
    await harness.feed({"EventName": "SessionSecondPartyHangup", "SessionUUID": "s"})
    assert len(harness.dead_letters) == 1

def test_is_no_coroutine(harness):
    pass

def test_async_with_fails():
    import asyncio
    from maskline.testing import Harness

    async def go():
        async with Harness("my_fares") as harness:
            await harness.feed({"EventName": "SessionSecondPartyHangup", "SessionUUID": "inside"})
            assert not harness.calls

    asyncio.run(go())

@pytest.fixture
def billed(harness):
    yield
    assert not harness.calls, "of the fixture"

async def test_whose_fixture_fails(billed, harness):
    await harness.feed({"EventName": "SessionSecondPartyHangup", "SessionUUID": "afterwards"})

def test_fails_without_a_harness():
    assert False
"""

SCOPE = "asyncio_default_fixture_loop_scope = function\n"
STRICT, AUTO = f"asyncio_mode = strict\n{SCOPE}", f"asyncio_mode = auto\n{SCOPE}"
GOOD = ["test_by_marker", "test_method[1]", "test_method[2]", "test_fixture_of_ones_own"]


NOT_CHOSEN = """
async def test_not_chosen(harness):
    pass
"""


def run(project: Path, *options: str) -> tuple[dict[str, str], str]:
    """Outcomes by the tests' names, and all that pytest has printed."""
    without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "xdist")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-q", *without, *options],
        cwd=project,
        check=False,
        env={**os.environ, "COLUMNS": "80", "PYTEST_ADDOPTS": "", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::([\w\[\]-]+)", done.stdout, re.MULTILINE)
    return {name: outcome.lower() for outcome, name in found}, done.stdout + done.stderr


def write(project: Path, ini: str, **modules: str) -> None:
    (project / "my_fares.py").write_text(HANDLERS)
    for name, tests in modules.items():
        (project / f"test_{name}.py").write_text(tests)
    (project / "pytest.ini").write_text(
        f"[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error\n{ini}"
    )


def assert_table(printed: str) -> None:
    table = printed.partition("what arrived, and what the handlers got")[2].partition("short test summary")[0]
    assert "attempts 1-10: ValueError: no amount for num_" in table
    assert "4155550123" not in table


@pytest.mark.parametrize(
    ("options", "ini", "mark"),
    [
        pytest.param(["-pno:anyio"], STRICT, "pytest.mark.asyncio", id="asyncio strict"),
        pytest.param([], AUTO, "", id="asyncio auto, and anyio"),
        pytest.param(["-pno:asyncio"], "", "pytest.mark.anyio", id="anyio"),
    ],
)
def test_async_tests_with_a_harness_run_under_other_plugins(tmp_path, options, ini, mark):
    anyio = "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n" if "anyio" in mark else ""
    write(tmp_path, ini, marked=TESTS.replace("*MARKS", mark) + anyio, unmarked=NOT_CHOSEN)

    outcomes, printed = run(tmp_path, *options)

    assert outcomes == dict.fromkeys(GOOD, "passed") | {
        "test_fails": "failed",
        "test_not_chosen": "error",
    }, printed
    assert 'mark the test with @pytest.mark.maskline_handlers("my_module")' in printed
    assert_table(printed)


def test_they_run_alone_and_other_tests_are_left_alone(tmp_path):
    ini = "maskline_handlers = my_fares.py\n"
    write(tmp_path, ini, by_ini=BY_INI, marked=TESTS.replace("*MARKS", ""))

    outcomes, printed = run(tmp_path, "-pno:asyncio", "-pno:anyio")

    assert outcomes == dict.fromkeys(GOOD, "passed") | {
        "test_nothing_is_imported_before_it_is_asked_for": "passed",
        "test_by_ini": "passed",
        "test_is_no_coroutine": "failed",
        "test_async_with_fails": "failed",
        "test_fails_without_a_harness": "failed",
        "test_fails": "failed",
        "test_whose_fixture_fails": "error",
    }, printed
    assert "the fixture `harness` is for `async def` tests" in printed
    assert printed.count("what arrived, and what the handlers got") == 3
    assert "session a is inside" in printed
    assert "session a is afterwards" in printed
