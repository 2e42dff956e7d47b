"""Maskline started where the user's own modules bear the names of maskline's, or of libraries that it needs."""

import contextlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from process_kit import fleet
from servers import free_port, wait_until

from maskline.runtime.startup import search_path

MASKLINE = str(Path(sys.executable).with_name("maskline"))
RUN_AS_MODULE = [sys.executable, "-m"]
NAMES = [
    "schemas/__init__.py", "runtime/__init__.py", "console/data.py", "redis.py", "aiohttp/__init__.py", "queue.py",
    "concurrent/__init__.py", "yarl.py", "uvloop.py", "structlog.py", "json.py", "selectors.py", "handlers/__init__.py",
]  # fmt: skip
"""One that is a package of maskline's stands there as a bare directory."""
ROLES = ["worker.py", "ingest.py"]
"""`python -m maskline.worker` would mean these."""
HANDLERS = """
import os
import neighbour
from maskline import on

@on.every
async def handle(event, ctx):
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write(f"{event.session_uuid} {neighbour.NAME}\\n")
    if event.session_uuid == "deadly" and os.getppid() != int(os.environ.get("TRIAL_OF", "0")):
        os._exit(3)
"""


@pytest.fixture
def project(tmp_path):
    """A directory of the user's, with handlers, and with modules that say so when they are executed."""
    directory = tmp_path / "project"
    for name in NAMES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(
            f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + chr(10))\n"
        )
    (directory / "fares").mkdir()
    (directory / "fares" / "calls.py").write_text(HANDLERS)
    (directory / "neighbour.py").write_text("NAME = 'next door'")
    return directory


def with_roles(project):
    for name in ROLES:
        (project / name).write_text((project / "redis.py").read_text().replace("redis.py", name))
    return project


def executed(project):
    file = project.parent / "executed"
    return file.read_text().split() if file.exists() else []


@contextlib.contextmanager
def started(command, project, environment):
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


@pytest.mark.parametrize(
    ("command", "roles"),
    [
        ([MASKLINE, "worker"], True),
        ([MASKLINE, "worker", "--processes", "2"], True),
        ([*RUN_AS_MODULE, "maskline.worker"], True),
        ([*RUN_AS_MODULE, "maskline.worker", "--processes", "2"], True),
    ],
)
def test_a_worker_runs_the_users_handlers_and_none_of_his_other_modules(
    redis_server, namespace, project, command, roles
):
    if roles:
        with_roles(project)
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(
            handlers="fares.calls",
            PYTHONPATH=f":{project.parent}",  # its first part is the working directory
        )
        with started(command, project, environment) as (process, log):
            it.put("s1", 1)
            wait_until(it.record_file.exists, within_s=20, what="the handler to run")
            process.terminate()
            assert process.wait(20) == 0, log.read_text()
        assert it.record_file.read_text() == "s1 next door\n"
        assert executed(project) == []
        assert "died" not in log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        [MASKLINE, "ingest", "--processes", "2"],
        [*RUN_AS_MODULE, "maskline.ingest"],
        [MASKLINE, "dev", "--demo", "--exit"],
    ],
)
def test_ingest_and_dev_start_beside_the_users_modules(redis_server, namespace, project, command):
    with_roles(project)
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
                assert process.wait(60) == 0, log.read_text()
            else:
                wait_until(lambda: "ingest started" in log.read_text(), within_s=20, what="ingest to start")
                process.terminate()
                assert process.wait(20) == 0, log.read_text()
    assert executed(project) == []


def test_a_trial_runs_beside_the_users_modules(redis_server, namespace, project):
    with_roles(project)
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(handlers="fares.calls", lease_ttl_ms=600)
        it.put("deadly", 1)
        with started([MASKLINE, "worker", "--processes", "1"], project, environment) as (process, _):
            process.wait(20)
        for _ in range(4):
            with started([MASKLINE, "worker"], project, environment) as (process, log):
                wait_until(
                    lambda: process.poll() is not None or it.drained(), within_s=30, what="a death or an end"
                )
                if process.poll() is None:
                    break
        (letter,) = it.dead_letters()
        assert letter.code == "crashed_worker", log.read_text()
    assert executed(project) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("redis.py", [MASKLINE, "worker"]),
        ("queue.py", [*RUN_AS_MODULE, "maskline.ingest"]),
        ("aiohttp/__init__.py", [*RUN_AS_MODULE, "maskline.worker"]),
        ("concurrent/__init__.py", [MASKLINE, "ingest", "--processes", "2"]),
    ],
)
def test_what_hides_a_library_by_pythonpath_is_named(tmp_path, name, command):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('executed')")
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        rf"maskline: {tmp_path}/{name.partition('/')[0]} takes the place of .*\n", done.stderr
    )


@pytest.mark.parametrize("name", ["schemas/__init__.py", "handlers/__init__.py", "worker.py"])
def test_what_would_hide_a_package_of_ours_by_pythonpath_does_not(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [MASKLINE, "worker"], env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert "MASKLINE_REDIS_URL" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("handlers", "file"),
    [
        ("redis", "redis.py"),
        ("maskline.fares", "maskline/fares.py"),
        ("queue", "queue.py"),
    ],
)
def test_a_handler_module_under_a_name_that_is_taken_is_refused(project, handlers, file):
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(HANDLERS)
    environment = {
        "PATH": os.environ["PATH"], "MASKLINE_REDIS_URL": "redis://127.0.0.1:1", "MASKLINE_HANDLERS": handlers,
    }  # fmt: skip
    done = subprocess.run(
        [MASKLINE, "worker"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (
        f"MASKLINE_HANDLERS: {handlers}: {project / file} cannot be imported under this name" in done.stderr
    )


def test_a_handler_file_under_a_name_that_is_taken_is_taken_by_its_path(redis_server, namespace, project):
    with_roles(project)
    (project / "worker.py").write_text(HANDLERS)
    (project / "yarl.py").write_text(HANDLERS.replace("def handle", "def handle_too"))
    with fleet(redis_server, namespace, project.parent) as it:
        environment = it.environment(handlers="worker.py,./yarl.py")
        with started([MASKLINE, "worker"], project, environment) as (process, log):
            it.put("s1", 1)
            wait_until(
                lambda: it.record_file.exists() and len(it.record_file.read_text().split("\n")) == 3,
                within_s=20, what="both handlers to run",
            )  # fmt: skip
            process.terminate()
            assert process.wait(20) == 0, log.read_text()


def test_a_handler_module_that_misses_what_maskline_hides_is_told(project):
    (project / "fares" / "calls.py").write_text("from redis import Order")
    environment = {
        "PATH": os.environ["PATH"], "MASKLINE_REDIS_URL": "redis://127.0.0.1:1", "MASKLINE_HANDLERS": "fares.calls",
    }  # fmt: skip
    done = subprocess.run(
        [MASKLINE, "worker"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert f"{project / 'redis.py'} cannot be imported under this name: rename it" in done.stderr


def test_an_installed_copy_of_a_library_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "redis")
    assert list(search_path.hiding()) == [("redis", str(tmp_path / "redis"))]
    (tmp_path / "redis-9.0.dist-info").mkdir()
    assert list(search_path.hiding()) == []


def test_the_names_of_libraries_are_all_there():
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
    ours = {name for name in provided if name.startswith("__editable__")} | search_path.PACKAGES
    assert {name for name in provided - ours if not name.startswith("_")} <= search_path.LIBRARIES
