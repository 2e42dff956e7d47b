"""README and docs are kept true: their Python runs, their commands and settings exist, their links lead somewhere."""

import asyncio
import inspect
import re
import sys
import types
from pathlib import Path
from urllib.parse import urlencode

import pytest

from maskline.console.commands import COMMANDS
from maskline.schemas.callback import RawCallback
from maskline.schemas.parameters import FORM_TYPE
from maskline.schemas.session_export import ExportedCallback, SessionExport, encode_export
from maskline.schemas.settings import SETTINGS
from maskline.testing import SESSION_UUID, Harness, callback
from maskline.worker.api.loading import load_handlers

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SNIPPETS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_in_the_docs_runs(code, monkeypatch, tmp_path):
    module = types.ModuleType("docs_snippet")
    module.__file__ = str(tmp_path / "docs_snippet.py")
    (tmp_path / "double_hangup.json").write_bytes(double_hangup())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs_snippet", "exec"), vars(module))  # noqa: S102  the project's own text
    assert load_handlers([module]).specs
    for name, value in list(vars(module).items()):
        if name.startswith("test_") and inspect.iscoroutinefunction(value):
            asyncio.run(run_test(value, module))


async def run_test(test, module):
    """Run a test of a snippet: with a harness, if it asks for the fixture."""
    if "harness" not in inspect.signature(test).parameters:
        await test()
        return
    async with Harness(module, **module.pytestmark.kwargs) as harness:
        await test(harness)


def double_hangup():
    """The exported session of a snippet."""
    hangup = callback("SessionPartiesHangup", sequence_number=1, amount="0.02")
    raw = RawCallback("POST", b"", FORM_TYPE, urlencode(hangup).encode(), 1, "")
    callbacks = tuple(ExportedCallback(at_ms=at_ms, callback=raw) for at_ms in (1_000, 9_000))
    return encode_export(SessionExport(session_uuid=SESSION_UUID, callbacks=callbacks))


def test_there_are_snippets_to_run():
    assert len(SNIPPETS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_settings_and_links_exist(page):
    text = page.read_text()
    known = {f"MASKLINE_{setting.name.removeprefix('MASKLINE_')}" for setting in SETTINGS} | {
        "MASKLINE_CONFIG"
    }
    for name in re.findall(r"\bMASKLINE_[A-Z0-9_]*[A-Z0-9]\b", text):
        assert name in known or name.removesuffix("_FILE") in known or name == "MASKLINE_X", name
    consoles = "\n".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^maskline (\w+)", consoles, re.MULTILINE) + re.findall(r"`maskline (\w+)", text)
    assert set(commands) <= set(COMMANDS)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_files_that_the_map_names_exist():
    """Of several in a row, those without a folder lie in the folder of the one before."""
    folder, named = "", 0
    for name in re.findall(r"`([\w./]+\.(?:py|pyx|lua|md|toml))`", (ROOT / "CONTRIBUTING.md").read_text()):
        if "/" in name:
            folder = name.rpartition("/")[0]
        elif name == "__init__.py":  # of any package
            continue
        assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name
        named += 1
    assert named > 40


def test_log_events_that_operating_quotes_are_logged():
    """A row of the table of what can be wrong that begins with a quote quotes log events."""
    logged = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "logs.md").read_text(), re.MULTILINE))
    rows = re.findall(r'^\| ("[^|]+)\|', (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    quoted = {event for row in rows for event in re.findall(r'"([^"]+)"', row)}
    assert len(quoted) > 20
    assert quoted <= logged
