"""`maskline new` writes a module whose check and tests pass at once, and overwrites nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from check_kit import clean_environment

from maskline.console.main import main
from maskline.console.new.command import OVERRIDE, next_steps
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings

MASKLINE = str(Path(sys.executable).with_name("maskline"))


def test_what_it_writes_is_checked_and_tested_at_once(tmp_path):
    def run(*command):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run(MASKLINE, "new", "taxi_rides")
    assert len(said.splitlines()) == 5
    assert max(map(len, said.splitlines())) <= 80
    assert run(MASKLINE, "check", "taxi_rides", "--strict").endswith("1 module, 1 handler: no mistakes\n")
    # Without pytest-asyncio, which a new installation does not have.
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider")
    assert "2 passed" in tested
    assert "my_fares" not in "".join(path.read_text() for path in tmp_path.iterdir() if path.is_file())


def test_compose_override_mounts_the_module_where_a_worker_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "rides"]) == 0
    override = (tmp_path / OVERRIDE).read_text()
    settings = dict(re.findall(r"^      (MASKLINE_\w+): (.*)$", override, re.MULTILINE))
    assert load_settings(settings).handlers == ("rides",)
    assert re.search(r"^  worker:$", override, re.MULTILINE)
    assert re.search(r"^      - \./rides\.py:/app/rides\.py:ro$", override, re.MULTILINE)


def test_second_module_leaves_the_override_alone_and_says_what_to_add(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new", "rides"])
    before = (tmp_path / OVERRIDE).read_text()
    assert main(["new", "trips"]) == 0
    assert (tmp_path / OVERRIDE).read_text() == before
    assert "- ./trips.py:/app/trips.py:ro" in capsys.readouterr().out
    assert (tmp_path / "test_trips.py").is_file()


@pytest.mark.parametrize("file", ["rides.py", "test_rides.py", "rides/data.txt"])
def test_nothing_is_overwritten(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=f"new: {file.partition('/')[0]}"):
        main(["new", "rides"])
    assert [it.name for it in tmp_path.iterdir()] == [file.partition("/")[0]]
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-fares", "cannot be a module's name"),
        ("class", "cannot be a module's name"),
        ("a.b", "cannot be a module's name"),
        ("redis", "a module that maskline needs"),
        ("queue", "a module that maskline needs"),
        ("maskline", "a module that maskline needs"),
        ("pytest", "would be hidden by"),
        ("test_fares", "taken for a test"),
    ],
)
def test_names_that_are_not_free_are_refused(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        main(["new", name])
    assert not [*tmp_path.iterdir()]


def test_next_steps_are_commands_of_maskline_or_pytest():
    steps = [*next_steps("rides")]
    assert [step.split("=")[0].split()[0] for step in steps] == [
        "maskline",
        "pytest",
        "MASKLINE_HANDLERS",
        "maskline",
    ]
