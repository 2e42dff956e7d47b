"""A package that is installed by pip brings handlers: MASKLINE_HANDLERS loads them by the name of its entry point."""

import fcntl
import json
import os
import site
import subprocess
import sys
import venv

import pytest
from process_kit import PATIENCE_S, fleet
from servers import wait_until

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "acme-fares"
version = "1.2"
[project.entry-points."maskline.handlers"]
acme = "acme_fares.handlers"
acme-too = "acme_fares.handlers"
broken = "acme_fares.broken"
no-module = "acme_fares.handlers:settle"
"""
HANDLERS = """\
import os
from maskline import Context, on
from maskline.events import Event

@on.every
async def settle(event: Event, ctx: Context) -> None:
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write(event.session_uuid)
"""
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="session")
def installed(tmp_path_factory, worker_id):
    """The bin directory of a virtual environment with maskline and the package, made once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared if worker_id == "master" else shared.parent) / "handler-packages"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "made").exists():
            make(shared)
            (shared / "made").touch()
    return shared / "venv" / "bin"


def make(directory):
    source = directory / "source"
    (source / "acme_fares").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "acme_fares" / "__init__.py").touch()
    (source / "acme_fares" / "handlers.py").write_text(HANDLERS)
    (source / "acme_fares" / "broken.py").write_text("import json\njson.loads('{')\n")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, directory], cwd=source, capture_output=True, text=True, check=True
    )
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    (packages,) = (directory / "venv" / "lib").glob("python*/site-packages")
    # Everything else that the tests' own environment has, maskline included.
    others = next(path for path in site.getsitepackages() if path.endswith("site-packages"))
    (packages / "others.pth").write_text(f"import site; site.addsitedir({others!r})\n")
    wheel = directory / built.stdout.split()[-1]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet",
         "--disable-pip-version-check", wheel],
        check=True,
    )  # fmt: skip


def run(installed, directory, *arguments, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
    return subprocess.run(
        [installed / "python", "-m", "maskline", *arguments],
        cwd=directory,
        env=own | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_handlers_are_loaded_by_the_entry_points_name_and_by_the_module_s(installed, tmp_path):
    by_name = run(installed, tmp_path, "check", "--json", MASKLINE_HANDLERS="acme,acme-too")
    report = json.loads(by_name.stdout)
    assert by_name.returncode == 0, by_name.stderr
    assert report["events"]["SessionPartiesHangup"] == ["acme_fares.handlers.settle"]
    mine = {"module": "acme_fares.handlers", "package": "acme-fares", "version": "1.2", "loaded": True}
    assert {"name": "acme", **mine} in report["installed"]
    by_module = json.loads(run(installed, tmp_path, "check", "acme_fares.handlers", "acme", "--json").stdout)
    assert by_module["events"] == report["events"]


def test_they_are_not_loaded_for_being_installed_and_listed_all_the_same(installed, tmp_path):
    done = run(installed, tmp_path, "check")
    assert done.returncode == 0
    assert "acme_fares.handlers.settle" not in done.stdout
    assert "  acme: acme_fares.handlers, of acme-fares 1.2  (not loaded)" in done.stdout.splitlines()


def test_mistakes_in_an_installed_package_are_named_by_its_own_line(installed, tmp_path):
    (tmp_path / "acme.py").write_text(HANDLERS)
    done = run(installed, tmp_path, "check", "broken", "no-module", "acme", "acmee")
    broken, no_module, both, near = done.stderr.splitlines()[:4]
    assert done.returncode == 2
    assert "acme_fares/broken.py:2: JSONDecodeError" in broken
    assert "the package acme-fares must name a module as its entry point" in no_module
    assert (
        "acme is a module (acme.py), and what the package acme-fares calls its module acme_fares.handlers"
        in both
    )
    assert near == "maskline check: there is no module acmee; did you mean acme?"


def test_a_new_module_does_not_take_the_name(installed, tmp_path):
    done = run(installed, tmp_path, "new", "acme")
    assert done.returncode == 2
    assert done.stderr == "maskline: new: an installed package calls its handlers acme: choose another name\n"


def test_worker_runs_them(installed, tmp_path, redis_server, namespace):
    record = tmp_path / "record"
    with fleet(redis_server, namespace, tmp_path) as it:
        environment = it.environment(handlers="acme", RECORD_FILE=str(record))
        it.put("s1", 1)
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen(
                [installed / "python", "-m", "maskline", "worker"], cwd=tmp_path, env=environment, stderr=log
            )
        try:
            wait_until(record.exists, within_s=PATIENCE_S, what="the package's handler to run")
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0
        finally:
            worker.kill()
            worker.wait()
