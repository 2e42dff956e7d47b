"""`maskline new NAME`: writes a handler module, its test and a compose override into the working directory.

The templates are the files themselves, for a module named `my_fares`: they are checked like the rest of the code.
Nothing that exists is written over.
"""

import keyword
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from maskline.runtime.cli import CommandParser
from maskline.runtime.startup import search_path
from maskline.schemas.errors import ConfigError
from maskline.worker.api.entry_points import installed_handlers

TEMPLATES: Final = Path(__file__).parent / "templates"
TEMPLATE_NAME: Final = "my_fares"
OVERRIDE: Final = "docker-compose.override.yml"


def main(argv: list[str]) -> int:
    """Run `maskline new` with these arguments; the exit code. Raises ConfigError for a name that is not free."""
    parser = CommandParser(
        prog="maskline new",
        description=f"Write a handler module, its test and a {OVERRIDE} into this directory. Nothing is overwritten.",
    )
    parser.add_argument("name", metavar="NAME", help="the module's name, as my_fares")
    name = parser.parse_args(argv).name
    if problem := name_problem(name):
        raise ConfigError(f"new: {problem}")
    modules = {f"{name}.py": f"{TEMPLATE_NAME}.py", f"test_{name}.py": f"test_{TEMPLATE_NAME}.py"}
    for file in (*modules, name):
        if Path(file).exists():
            raise ConfigError(f"new: {file} exists: choose another name, or move it away")
    written = [_write(file, template, name) for file, template in modules.items()]
    if Path(OVERRIDE).exists():
        print(f"{OVERRIDE} exists; add to its service worker, and to its MASKLINE_HANDLERS:")
        print(f"      MASKLINE_HANDLERS: …,{name}\n      - ./{name}.py:/app/{name}.py:ro")
    else:
        written.append(_write(OVERRIDE, OVERRIDE, name))
    print(f"wrote {', '.join(written)}; now:")
    for step in next_steps(name):
        print(f"  {step}")
    return 0


def name_problem(name: str) -> str | None:
    """Why a module cannot have this name; None if it can."""
    if not name.isidentifier() or keyword.iskeyword(name):
        return f"{name!r} cannot be a module's name: use letters, digits and underscores, as my_fares"
    if name.startswith("test_") or name == "conftest":
        return f"{name} would be taken for a test by pytest: choose another name"
    if name in search_path.NEEDED:
        return f"{name} is the name of a module that maskline needs: choose another name"
    if any(entry.name == name for entry in installed_handlers()):
        return f"an installed package calls its handlers {name}: choose another name"
    if (other := _found_elsewhere(name)) is not None:
        return f"{name} would be hidden by {other}: choose another name"
    return None


def next_steps(name: str) -> Iterator[str]:
    """Four commands for a user to go on with."""
    pytest = "pytest" if find_spec("pytest") else "pip install pytest && pytest"
    reload = " --reload" if find_spec("watchfiles") else ""
    yield f"maskline check {name}"
    yield f"{pytest} test_{name}.py"
    yield f"MASKLINE_HANDLERS={name} maskline dev{reload}"
    yield "maskline trigger SessionSecondPartyHangup Amount=0.02   # in a second terminal"


def _found_elsewhere(name: str) -> str | None:
    """What is imported under a name, if anything but a file of the working directory is."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or (spec.origin and Path(spec.origin).parent == Path.cwd()):
        return None
    return spec.origin or f"another module {name}"


def _write(file: str, template: str, name: str) -> str:
    text = (TEMPLATES / template).read_text(encoding="utf-8").replace(TEMPLATE_NAME, name)
    try:
        with Path(file).open("x", encoding="utf-8") as new:
            new.write(text)
    except OSError as error:
        raise ConfigError(f"new: {file} cannot be written: {error.strerror}") from None
    return file
