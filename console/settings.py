"""`maskline settings`: each setting with its value, default, meaning and source, secrets hidden.

`--markdown` prints the table of docs/settings.md, which a test holds equal to it.
"""

import sys
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskline.runtime.cli import CommandParser
from maskline.schemas.settings import SETTINGS, Setting, SettingsWithSources, read_settings

_INTRODUCTION: Final = """\
# Settings

Each setting is an environment variable, or the same name in the TOML file given by `MASKLINE_CONFIG`. The
environment wins. For every setting but `MASKLINE_CONFIG`, `NAME_FILE` (as `MASKLINE_AUTH_TOKENS_FILE`) names a
file that holds the value, for secrets. An empty value counts as not set; lists are written with commas or one
item a line, in TOML also as arrays of strings. An unknown or wrong name or value stops the start with one line
that names it.

`maskline settings` shows the present values and where each comes from. This page is its output, made by
`maskline settings --markdown`.

| name | default | meaning | allowed |
| --- | --- | --- | --- |
"""


def main(argv: list[str]) -> int:
    """Run `maskline settings` with these arguments; the exit code."""
    parser = CommandParser(
        prog="maskline settings",
        description="Every setting with its present value, default, meaning and source; secrets are hidden.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print an array of objects")
    form.add_argument("--markdown", action="store_true", help="print the table of the documentation")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        # Independent of what is set here: the page documents the defaults.
        print(markdown(), end="")
        return 0
    reading = read_settings()
    if arguments.json:
        rows = [_row(setting, reading) for setting in SETTINGS]
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    else:
        _print_table(reading)
    return 0


def markdown() -> str:
    """The whole text of docs/settings.md."""
    lines = (
        f"| {setting.name} | {setting.default_text} | {setting.meaning} | {setting.kind.allowed} |\n"
        for setting in SETTINGS
    )
    return _INTRODUCTION + "".join(lines)


def _row(setting: Setting, reading: SettingsWithSources) -> dict[str, str | bool]:
    return {
        "name": setting.name,
        "value": setting.show(getattr(reading.settings, setting.field)),
        "default": setting.default_text,
        "source": reading.sources[setting.field],
        "meaning": setting.meaning,
        "allowed": setting.kind.allowed,
        "secret": setting.kind.secret,
    }


def _print_table(reading: SettingsWithSources) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "value", "source", "default", "meaning"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "source"))
    for setting in SETTINGS:
        row = _row(setting, reading)
        is_set = row["source"] != "default"
        cells = (row[column] for column in ("name", "value", "source", "default", "meaning"))
        table.add_row(*(Text(str(cell)) for cell in cells), style="bold" if is_set else "")
    # In a pipe or a file no window bounds the line.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
