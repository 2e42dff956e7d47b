"""What a wheel and a source distribution of maskline hold, and what they must not hold."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]

WHEEL_SUFFIXES = {".py", ".pyi", ".lua", ".sql", ".yml", ".so", ".typed"}
"""`.typed` is the marker py.typed. No Cython source and no C: nothing of that is needed at run time."""

SDIST_FILES = (
    "pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "constraints.txt", "Dockerfile", "docker-compose.yml",
    ".dockerignore", ".ci/run", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "bench/load.c",
    "docs/settings.md", "tests/conftest.py", "tests/packaging/wheel_kit.py", "maskline/py.typed",
)  # fmt: skip


def sources(root: Path = ROOT) -> set[str]:
    """The files of the package as they are in the repository, by their paths below `root`."""
    found: set[str] = set()
    pending = [root / "maskline"]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_dir():  # also by way of a link
                pending.append(path)
            else:
                found.add(str(path.relative_to(root)))
    return found


def of_package(suffixes: set[str], root: Path = ROOT) -> set[str]:
    return {name for name in sources(root) if PurePosixPath(name).suffix in suffixes}


def check_wheel(wheel: Path, *, compiled: set[str]) -> None:
    """The wheel holds the package and nothing beside it; `compiled` are the `.pyx` files that must be built in it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {PurePosixPath(name).parts[0] for name in names}
    metadata = {top for top in tops if top.endswith(".dist-info")}
    assert len(metadata) == 1, tops
    assert tops - metadata == {"maskline"}
    held = {name for name in names if name.startswith("maskline/")}
    assert {PurePosixPath(name).suffix for name in held} <= WHEEL_SUFFIXES
    assert {name for name in held if not name.endswith(".so")} == of_package(WHEEL_SUFFIXES - {".so"})
    built = {name.partition(".")[0] + ".pyx" for name in held if name.endswith(".so")}
    assert built == compiled


def check_sdist(sdist: Path) -> None:
    """The source distribution holds real files only, all sources of the package, and what its tests need."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "links in the source distribution"
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert not {name for name in names if name.endswith((".so", ".pyc"))}
    assert {name for name in names if name.endswith(".c")} == {"bench/load.c"}
    assert of_package(WHEEL_SUFFIXES - {".so"} | {".pyx", ".pxd"}) <= names
    assert set(SDIST_FILES) <= names
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert tests <= names
