"""The wheel and the source distribution, built as an installer builds them, and maskline run from the wheel.

To save time one C extension stands for all of them here; `make wheel` builds them all, and goes through more steps.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from newcomer_kit import APPLICATION, PYTEST_PROJECT, Installation, Newcomer, write
from wheel_kit import ROOT, check_sdist, check_wheel

EXTENSION = "maskline/worker/native/packing.pyx"
"""The one that is built."""

BUILD = """
import json, sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind, source, target, **environment):
    """Build an `sdist` or a `wheel` of the folder `source` in `target`; its path, or None if the build failed."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", target],
        cwd=source,
        env=os.environ | {"CFLAGS": "-O0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (target / f"{kind}.log").write_text(done.stdout + done.stderr)
    return target / done.stdout.split()[-1] if done.returncode == 0 else None


class Built(NamedTuple):
    sdist: Path
    source: Path
    wheel: Path
    site: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory, worker_id):
    """Built once for all test processes: the source distribution, unpacked, and a wheel from it, unpacked as well."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared if worker_id == "master" else shared.parent) / "wheel"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "built").exists():
            sdist = build("sdist", ROOT, shared)
            assert sdist, (shared / "sdist.log").read_text()
            with tarfile.open(sdist) as archive:
                archive.extractall(shared, filter="data")
            source = shared / sdist.name.removesuffix(".tar.gz")
            for path in source.glob("maskline/**/*.pyx"):
                if path != source / EXTENSION:
                    path.unlink()
            wheel = build("wheel", source, shared, REQUIRE_MASKLINE_C="1")
            assert wheel, (shared / "wheel.log").read_text()
            zipfile.ZipFile(wheel).extractall(shared / "site-packages")  # noqa: S202 - our own
            (shared / "built").write_text(json.dumps([str(path) for path in (sdist, source, wheel)]))
        paths = [Path(path) for path in json.loads((shared / "built").read_text())]
    return Built(*paths, shared / "site-packages")


@pytest.fixture
def installation(built):
    """The interpreter of the tests, which finds the wheel's maskline before any other."""
    return Installation(Path(sys.executable), {"PYTHONPATH": str(built.site)})


def test_wheel_holds_the_package_alone(built):
    check_wheel(built.wheel, compiled={EXTENSION})


def test_sdist_holds_real_files_and_all_that_its_tests_need(built):
    check_sdist(built.sdist)


def test_build_without_compiler_leaves_the_c_extensions_out_unless_they_are_required(built, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        built.source, source, ignore=shutil.ignore_patterns("build", "*.so", "tests", "bench", "docs")
    )
    assert build("wheel", source, tmp_path, CC="/bin/false", REQUIRE_MASKLINE_C="1") is None
    log = (tmp_path / "wheel.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("maskline: ")]
    assert "REQUIRE_MASKLINE_C is set" in line
    assert "maskline.worker.native.packing cannot be built" in line
    assert "Traceback" not in log
    wheel = build("wheel", source, tmp_path, CC="/bin/false")
    assert wheel, (tmp_path / "wheel.log").read_text()
    check_wheel(wheel, compiled=set())


def test_maskline_of_the_wheel_runs_beside_modules_of_the_same_names(
    installation, built, redis_server, namespace, tmp_path
):
    newcomer = Newcomer(installation, tmp_path, redis_server, namespace)
    found = newcomer.run("-P", "-c", "import maskline.worker.native.packing as m; print(m.__file__)")
    assert found.startswith(str(built.site))
    with newcomer.started("-m", "maskline", "ingest"):
        newcomer.post("s1", 2)
        newcomer.post("s1", 1)
        with newcomer.started("-m", "maskline", "worker"):
            newcomer.until_booked("s1", [1, 2])


def test_pytest_project_with_a_schemas_module_uses_the_harness(installation, tmp_path):
    project = write(tmp_path / "project", PYTEST_PROJECT)
    assert "1 passed" in installation.run("-m", "pytest", "-q", "-p", "no:cacheprovider", directory=project)


def test_unrelated_application_is_not_touched(installation, built, tmp_path):
    application = write(tmp_path / "application", APPLICATION)
    beside = Installation(installation.python, {"PYTHONPATH": f"{built.site}:{application}"})
    assert beside.run("-m", "unrelated", directory=application) == "untouched\n"
