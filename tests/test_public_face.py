"""What handler authors import: `maskline`, `maskline.events`, `maskline.testing`, and what that costs them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import maskline
import maskline.events
import maskline.testing
from maskline.schemas import events as schema
from maskline.worker import api

FACE = {"Context", "Reject", "Retry", "on", "resource"}
HEAVY = {
    "aiohttp",
    "asyncio",
    "hiredis",
    "msgspec",
    "prometheus_client",
    "redis",
    "structlog",
    "uvloop",
    "yarl",
}
OLD_NAMES = ("console", "handlers", "ingest", "runtime", "schemas", "worker")


def run(code: str, cwd) -> str:
    """What a fresh interpreter prints, started in `cwd`, which does not look into the present directory."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_maskline_exports_exactly_the_names_of_the_contract():
    assert set(maskline.__all__) == FACE
    for name in FACE:
        assert getattr(maskline, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'Harness'"):
        maskline.Harness  # noqa: B018


def test_events_exports_every_type_of_event_and_no_other_name():
    types = {
        name
        for name, value in vars(schema).items()
        if isinstance(value, type) and issubclass(value, schema.Event) and not name.startswith("_")
    }
    assert types >= {cls.__name__ for cls in schema.EVENT_TYPES.values()}
    others = {"ATTRIBUTES", "EVENT_TYPES", "AnyEvent", "DeadLetterContext", "DeadLetterView"}
    others |= {"CallSummary", "Leg", "RecordingSummary"}
    assert set(maskline.events.__all__) == types | others
    for name in types:
        assert getattr(maskline.events, name) is getattr(schema, name)


def test_testing_exports_exactly_the_harness_and_what_it_takes_and_gives():
    assert set(maskline.testing.__all__) == {
        "SESSION_UUID",
        "Call",
        "DeadCall",
        "Harness",
        "HarnessStream",
        "callback",
    }
    assert all(hasattr(maskline.testing, name) for name in maskline.testing.__all__)


def test_importing_maskline_imports_no_library_and_leaves_the_interpreter_as_it_is(tmp_path):
    code = """
import json, signal, sys
before = [*sys.path], signal.getsignal(signal.SIGTERM), set(sys.modules)
import maskline
assert ([*sys.path], signal.getsignal(signal.SIGTERM)) == before[:2]
print(json.dumps(sorted(set(sys.modules) - before[2])))
"""
    imported = set(json.loads(run(code, tmp_path)))
    assert "maskline" in imported
    assert imported & HEAVY == set()
    assert {name for name in imported if name.startswith("maskline.")} == set()


def test_old_top_level_names_are_not_importable_outside_the_source_tree(tmp_path):
    code = f"""
import importlib.util
print([name for name in {OLD_NAMES} if importlib.util.find_spec(name) is not None])
"""
    assert run(code, tmp_path).strip() == "[]"


def test_type_checkers_see_every_name_of_the_face():
    source = Path(maskline.__file__)
    assert source.with_name("py.typed").is_file()
    (only,) = (node for node in ast.parse(source.read_text()).body if isinstance(node, ast.If))
    imported = {alias.name for node in only.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == FACE
