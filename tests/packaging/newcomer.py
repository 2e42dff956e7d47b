"""A newcomer's path with what `make wheel` has built: `python newcomer.py DIST`, the folder of one wheel and one sdist.

The wheel is installed in an empty environment and run in projects whose modules bear names that maskline has inside; in
the end another application with such modules is put beside it. Each step prints a line. The exit code is 1 at the first
step that fails.
"""

import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from newcomer_kit import APPLICATION, PYTEST_PROJECT, Installation, Newcomer, write  # noqa: E402 - as below
from servers import RedisServer, free_port  # noqa: E402 - found by the path above
from wheel_kit import check_sdist, check_wheel, of_package  # noqa: E402 - as above

SDIST_TESTS = (
    "tests/schemas/settings/test_settings.py",
    "tests/worker/ordering/test_reorder.py",
    "tests/packaging/test_container_files.py",
)
"""The part of the tests that runs from the unpacked source distribution; `make test` runs there as well."""


def main(dist: Path) -> int:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        directory = Path(place)
        try:
            check_distributions(wheel, sdist)
            run_sdist_tests(sdist, directory)
            installation = install(wheel, directory)
            with step("a server starts"):
                server = RedisServer(directory / "server").start()
                stack.callback(server.stop)
            newcomer = Newcomer(installation, directory, server, f"newcomer-{uuid.uuid4().hex[:8]}")
            run_modules(newcomer)
            run_nodes(newcomer)
            run_dev(newcomer)
            run_projects(installation, directory)
        except AssertionError:
            traceback.print_exc()
            return 1
    return 0


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, then how long it took."""
    print(f"{what} … ", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("FAILED", flush=True)
        raise
    print(f"{time.monotonic() - began:.1f} s", flush=True)


def check_distributions(wheel: Path, sdist: Path) -> None:
    with step(f"{wheel.name} holds maskline/ alone, with all C extensions"):
        check_wheel(wheel, compiled=of_package({".pyx"}))
    with step(f"{sdist.name} holds real files, and all that the tests need"):
        check_sdist(sdist)


def run_sdist_tests(sdist: Path, directory: Path) -> None:
    with step(f"tests run from the unpacked sdist: {' '.join(SDIST_TESTS)}"):
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        unpacked = directory / sdist.name.removesuffix(".tar.gz")
        tests = Installation(Path(sys.executable), {})
        said = tests.run("-m", "pytest", "-q", "-n", "2", *SDIST_TESTS, directory=unpacked)
        assert " passed" in said, said


def install(wheel: Path, directory: Path) -> Installation:
    environment = directory / "environment"
    python = environment / "bin" / "python"
    with step("an empty environment"):
        run(sys.executable, "-m", "venv", str(environment))
    with step("pip install the wheel, the embedded server and pytest"):
        run(str(python), "-m", "pip", "install", "--quiet", f"{wheel}[embedded]", "pytest")
    installation = Installation(python, {})
    with step("the C extensions can be imported"):
        names = [name.removesuffix(".pyx").replace("/", ".") for name in of_package({".pyx"})]
        installation.run("-c", f"import {', '.join(names)}", directory=directory)
    return installation


def run_modules(newcomer: Newcomer) -> None:
    """In the project's folder, which has a `worker.py`, a `schemas/`, a `handlers/` and a `redis.py`."""
    for options in ((), ("-P",)):
        for module in ("maskline", "maskline.ingest", "maskline.worker"):
            with step(f"python {' '.join([*options, '-m', module])} --help"):
                assert "usage:" in newcomer.run(*options, "-m", module, "--help")


def run_nodes(newcomer: Newcomer) -> None:
    maskline = str(newcomer.installation.python.with_name("maskline"))
    with contextlib.ExitStack() as stack:
        with step("maskline ingest takes callbacks"):
            stack.enter_context(newcomer.started(maskline, "ingest"))
            newcomer.post("s1", 2)
            newcomer.post("s1", 1)
        with step("maskline worker runs the project's handler"), newcomer.started(maskline, "worker"):
            newcomer.until_booked("s1", [1, 2])
        with step("python -P -m maskline.worker does"), newcomer.started("-P", "-m", "maskline.worker"):
            newcomer.post("s2", 1)
            newcomer.until_booked("s2", [1])
        with contextlib.ExitStack() as workers:
            with step("maskline worker --processes 2 does"):
                workers.enter_context(newcomer.started(maskline, "worker", "--processes", "2"))
                newcomer.post("s3", 1)
                newcomer.until_booked("s3", [1])
            with step("a handler that kills its process ends as a dead letter"):
                newcomer.until_crash_is_dead_letter()
            with step("and the others go on"):
                newcomer.post("s4", 1)
                newcomer.until_booked("s4", [1])
        with step("all of it stops"):
            stack.close()


def run_dev(newcomer: Newcomer) -> None:
    with step("maskline dev --demo --exit"):
        said = newcomer.installation.run(
            str(newcomer.installation.python.with_name("maskline")), "dev", "--demo", "--exit",
            directory=newcomer.project, settings={"MASKLINE_PORT": free_port()},
        )  # fmt: skip
        assert "every event reached the handler once" in said, said


def run_projects(installation: Installation, directory: Path) -> None:
    with step("a pytest project with a schemas.py uses maskline.testing"):
        project = write(directory / "pytest-project", PYTEST_PROJECT)
        assert "1 passed" in installation.run("-m", "pytest", "-q", directory=project)
    (site,) = installation.python.parents[1].glob("lib/python*/site-packages")
    write(site, APPLICATION)
    for options in (("-c", "import unrelated"), ("-m", "unrelated"), ("-I", "-m", "unrelated")):
        with step(f"another application in the environment is not touched: python {' '.join(options)}"):
            assert installation.run(*options, directory=directory) == "untouched\n"


def run(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
