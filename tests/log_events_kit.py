"""The log events of the code and of `docs/logs.md`, for the test that compares them.

`python tests/log_events_kit.py` writes the tables of the page anew: it adds and drops rows, updates the levels and the
modules, keeps what is written by hand, and prints what it dropped.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "logs.md"
PACKAGES = ("ingest", "worker", "runtime", "schemas", "handlers", "console")
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
LOGGERS = {"_log", "log", "logger", "_logger"}

_ROW = re.compile(r"\| `([^`]+)` \| (\w+) \| ([^|]*) \| (.*) \|$")


class Logged(NamedTuple):
    """One log call of the code: `event` is None where it is no constant text."""

    package: str
    event: str | None
    level: str
    module: str
    line: int

    @property
    def row(self) -> tuple[str, str, str]:
        assert self.event is not None
        return self.package, self.event, self.level


@functools.cache
def logged_events() -> tuple[Logged, ...]:
    """Every log call of maskline's packages."""
    return tuple(
        logged
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if "templates" not in file.parts  # what `maskline new` writes is the user's
        for logged in events_of(file.read_text(encoding="utf-8"), file.relative_to(ROOT))
    )


def events_of(source: str, path: Path) -> Iterator[Logged]:
    """The log calls of one module.

    `log = _log.error if … else _log.warning` counts as both; any other method that is passed on as one without a text.
    """
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    constants = dict(_constants(tree))
    chosen = dict(_chosen_methods(nodes))
    done = {id(method) for methods in chosen.values() for method in methods}

    def logged(method: ast.Attribute, text: ast.expr | None) -> Logged:
        event = None if text is None else _text(text, constants)
        return Logged(path.parts[0], event, LEVELS[method.attr], module, method.lineno)

    for node in nodes:
        if isinstance(node, ast.Call):
            methods = [node.func] if _is_log_method(node.func) else []
            if isinstance(node.func, ast.Name):
                methods = chosen.get(node.func.id, [])
            for method in methods:
                done.add(id(method))
                yield logged(method, node.args[0] if node.args else None)
    yield from (logged(node, None) for node in nodes if _is_log_method(node) and id(node) not in done)
    if module.startswith("runtime.logs"):
        for text in _events_of_dicts(nodes):  # lines about the log itself
            yield Logged(path.parts[0], text, "warning", module, 0)


def _chosen_methods(nodes: list[ast.AST]) -> Iterator[tuple[str, list[ast.Attribute]]]:
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            methods = [side for side in (node.value.body, node.value.orelse) if _is_log_method(side)]
            yield from ((name.id, methods) for name in node.targets if isinstance(name, ast.Name) and methods)


def _events_of_dicts(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and _text(key, {}) == "event" and (text := _text(value, {})) is not None:
                    yield text


def _is_log_method(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and node.attr in LEVELS and _is_logger(node.value)


def _is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in LOGGERS
    if isinstance(node, ast.Attribute):
        return node.attr in LOGGERS
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_logger"


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def _text(node: ast.expr, constants: dict[str, ast.expr]) -> str | None:
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def page_rows() -> dict[tuple[str, str, str], str]:
    """The rows of the page, as (package, event, level), with what each means."""
    rows = {}
    package = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            package = line.removeprefix("## ").strip("`/ ")
        elif match := _ROW.match(line):
            rows[package, match[1], match[2]] = match[4].strip()
    return rows


def write_page() -> list[str]:
    """Write the tables anew. Returns the rows that the code no longer has."""
    meanings = page_rows()
    modules: dict[tuple[str, str, str], set[str]] = {}
    for logged in logged_events():
        if logged.event is not None:
            modules.setdefault(logged.row, set()).add(logged.module.removeprefix(f"{logged.package}."))
    text = PAGE.read_text(encoding="utf-8")
    page = [text[: text.index("\n## ")].rstrip()]
    for package in PACKAGES:
        rows = sorted(row for row in modules if row[0] == package)
        if rows:
            page.append(f"\n## `{package}/`\n\n| event | level | from | what it means, and what to do |")
            page.append("| --- | --- | --- | --- |")
        for row in rows:
            source = ", ".join(f"`{module}`" for module in sorted(modules[row]))
            page.append(f"| `{row[1]}` | {row[2]} | {source} | {meanings.get(row, '')} |")
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")
    return [f"{row}: {meaning}" for row, meaning in meanings.items() if row not in modules]


if __name__ == "__main__":
    for dropped in write_page():
        print("dropped", dropped)  # noqa: T201 - a command prints
