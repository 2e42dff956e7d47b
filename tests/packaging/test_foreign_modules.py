"""A user's own modules beside maskline: which names are free, which are refused, and that none is imported by it.

Free is every name but `maskline` and those of the libraries that maskline needs: a project may have a `schemas/`, a
`worker.py` or a `handlers/`. A file that bears the name of a library may lie in the working directory, but cannot be
imported there; by PYTHONPATH it would hide the library, and the start is refused.
"""

import contextlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from newcomer_kit import INSIDE
from process_kit import PATIENCE_S, fleet
from servers import free_port, wait_until

from maskline.runtime.startup import search_path

MASKLINE = str(Path(sys.executable).with_name("maskline"))
AS_MODULE = [sys.executable, "-m"]
SAFE_PATH = [sys.executable, "-P", "-m"]
"""Python leaves the working directory out of its path: handlers are found there all the same."""

LIBRARIES = [
    "redis.py", "aiohttp/__init__.py", "queue.py", "concurrent/__init__.py", "yarl.py", "uvloop.py", "structlog.py",
    "json.py", "selectors.py", "typing.py",
]  # fmt: skip
"""Files with the names of libraries, of Python's and of others."""

HANDLERS = f"""
import os
import {", ".join(INSIDE)}
from maskline import on

@on.every
async def handle(event, ctx):
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write(f"{{event.session_uuid}} {{worker.OWNER}}\\n")
    if event.session_uuid == "deadly":
        os._exit(3)
"""
"""A handler module that needs the project's own modules."""


@pytest.fixture
def project(tmp_path):
    """A folder with handlers, modules that they need, and modules with names of libraries, which record an import."""
    directory = tmp_path / "project"
    record = f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__ + chr(10))\n"
    files = {
        **dict.fromkeys(LIBRARIES, record),
        **{f"{name}.py": "OWNER = 'the project'\n" for name in ("worker", "ingest")},
        **{f"{name}/__init__.py": "" for name in ("schemas", "runtime", "handlers")},
        "console/data.txt": "",  # no __init__.py: a namespace package
        "fares/calls.py": HANDLERS,
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def imported(project):
    """The project's modules with names of libraries that were imported."""
    file = project.parent / "imported"
    return file.read_text().split() if file.exists() else []


@contextlib.contextmanager
def started(command, project, environment):
    """A process in the project's folder, and the file of its log."""
    log = project.parent / "log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def refused(command, *, directory=None, **environment):
    """What a command writes that must end with 2 and one line."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "MASKLINE_REDIS_URL": "redis://127.0.0.1:1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [MASKLINE, "worker"],
        [MASKLINE, "worker", "--processes", "2"],
        [*AS_MODULE, "maskline", "worker"],
        [*AS_MODULE, "maskline.worker"],
        [*AS_MODULE, "maskline.worker", "--processes", "2"],
        [*SAFE_PATH, "maskline.worker"],
    ],
    ids=lambda command: " ".join(Path(part).name for part in command),
)
def test_worker_runs_handlers_that_use_modules_with_names_of_maskline_inside(
    redis_server, namespace, project, command
):
    with fleet(redis_server, namespace, project.parent) as it:
        # The first part of PYTHONPATH is empty, so it is the working directory.
        environment = it.environment(handlers="fares.calls", PYTHONPATH=f":{project.parent}")
        with started(command, project, environment) as (process, log):
            it.put("s1", 1)
            wait_until(it.record_file.exists, within_s=PATIENCE_S, what="the handler to run")
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        assert it.record_file.read_text() == "s1 the project\n"
        assert imported(project) == []
        assert "died" not in log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        [MASKLINE, "ingest", "--processes", "2"],
        [*AS_MODULE, "maskline.ingest"],
        [*SAFE_PATH, "maskline", "ingest"],
        [MASKLINE, "dev", "--demo", "--exit"],
    ],
    ids=lambda command: " ".join(Path(part).name for part in command),
)
def test_ingest_and_dev_import_none_of_the_projects_modules(redis_server, namespace, project, command):
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(
            handlers=None,
            verify=None if "dev" in command else "off",
            port=free_port(),
            PATH=os.environ["PATH"],
            gap_timeout_ms=1_000,
        )
        with started(command, project, environment) as (process, log):
            if "dev" in command:
                assert process.wait(2 * PATIENCE_S) == 0, log.read_text()
            else:
                wait_until(lambda: "ingest started" in log.read_text(), within_s=PATIENCE_S, what="ingest")
                process.terminate()
                assert process.wait(PATIENCE_S) == 0, log.read_text()
    assert imported(project) == []


def test_sandbox_run_imports_none_of_the_projects_libraries(redis_server, namespace, project):
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(handlers="fares.calls", lease_ttl_ms=600)
        it.put("deadly", 1)
        for _ in range(5):
            with started([MASKLINE, "worker"], project, environment) as (process, log):
                wait_until(
                    lambda: process.poll() is not None or it.dead_letters(),
                    within_s=PATIENCE_S,
                    what="a death or a dead letter",
                )
                if it.dead_letters():
                    break
        (letter,) = it.dead_letters()
        assert letter.code == "crashed_worker", log.read_text()
    assert imported(project) == []


@pytest.mark.parametrize("module", ["maskline", "maskline.ingest", "maskline.worker"])
def test_module_start_imports_no_file_with_the_name_of_a_standard_module(tmp_path, module):
    """Of all that Python has not loaded by the time it looks for the module."""
    (tmp_path / "loaded.py").write_text("import sys; print(*sys.modules)")
    loaded = subprocess.run([*AS_MODULE, "loaded"], cwd=tmp_path, capture_output=True, text=True, check=True)
    missing = {name for name in sys.stdlib_module_names if not find_spec(name)}  # modules of other systems
    names = sys.stdlib_module_names - missing - {*loaded.stdout.split()} - {"runpy"}
    assert "typing" in names
    project = tmp_path / "project"
    project.mkdir()
    for name in names:
        (project / f"{name}.py").write_text("raise SystemExit(f'{__name__} of the project was imported')\n")
    done = subprocess.run(
        [*AS_MODULE, module, "--help"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: maskline")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("redis.py", [MASKLINE, "worker"]),
        ("queue.py", [*AS_MODULE, "maskline.ingest"]),
        ("aiohttp/__init__.py", [*AS_MODULE, "maskline.worker"]),
        ("concurrent/__init__.py", [MASKLINE, "ingest", "--processes", "2"]),
    ],
)
def test_file_on_pythonpath_that_hides_a_library_is_refused_by_name(tmp_path, name, command):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('imported')")
    line = refused(command, PYTHONPATH=str(tmp_path))
    assert line.startswith(f"maskline: {tmp_path}/{name.partition('/')[0]} takes the place of ")


def test_files_on_pythonpath_with_names_of_maskline_inside_are_allowed(tmp_path):
    for name in INSIDE:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    line = refused([MASKLINE, "worker"], PYTHONPATH=str(tmp_path), MASKLINE_REDIS_URL="")
    assert "MASKLINE_REDIS_URL" in line


@pytest.mark.parametrize(
    ("handlers", "file"),
    [("redis", "redis.py"), ("queue", "queue.py"), ("maskline.fares", "maskline/fares.py")],
)
def test_handler_module_with_the_name_of_a_library_or_of_maskline_is_refused(project, handlers, file):
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(HANDLERS)
    line = refused([MASKLINE, "worker"], directory=project, MASKLINE_HANDLERS=handlers)
    assert f"MASKLINE_HANDLERS: {handlers}: {project / file} cannot be imported under this name" in line


def test_handler_module_that_imports_a_hidden_file_is_refused_and_told_to_rename_it(project):
    (project / "fares" / "calls.py").write_text("from redis import Order")
    line = refused([MASKLINE, "worker"], directory=project, MASKLINE_HANDLERS="fares.calls")
    assert f"{project / 'redis.py'} cannot be imported under this name: rename it" in line


def test_handler_file_with_the_name_of_a_library_is_loaded_by_its_path(redis_server, namespace, project):
    (project / "yarl.py").write_text(HANDLERS)
    (project / "handlers.py").write_text(HANDLERS.replace("def handle", "def handle_too"))
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(handlers="./yarl.py,handlers.py")
        with started([MASKLINE, "worker"], project, environment) as (process, log):
            it.put("s1", 1)
            wait_until(
                lambda: it.record_file.exists() and it.record_file.read_text().count("\n") == 2,
                within_s=PATIENCE_S,
                what="both handlers to run",
            )
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, log.read_text()


def test_installed_copy_of_a_library_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "redis")
    assert list(search_path.hiding_modules()) == [("redis", str(tmp_path / "redis"))]
    (tmp_path / "redis-9.0.dist-info").mkdir()
    assert list(search_path.hiding_modules()) == []


def test_library_names_cover_every_installed_dependency():
    needed, names = {"maskline"}, ["maskline"]
    while names:
        try:
            requirements = distribution(names.pop()).requires or []
        except PackageNotFoundError:
            continue
        found = {
            re.match(r"[\w.-]+", requirement)[0].lower()
            for requirement in requirements
            if "extra ==" not in requirement
        }
        names += found - needed
        needed |= found
    provided = {
        name
        for name, owners in packages_distributions().items()
        if {owner.lower() for owner in owners} & needed
    }
    ours = {name for name in provided if name.startswith("__editable__")} | {search_path.OWN_NAME}
    assert {name for name in provided - ours if not name.startswith("_")} <= search_path.LIBRARIES
