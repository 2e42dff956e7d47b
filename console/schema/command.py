"""`maskline schema`: prints JSON Schemas of events, call summaries and forwarded messages, and AsyncAPI for the latter.

The same documents stand in `docs/schema/`; `--directory` writes them there, and a test holds them to the code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from maskline.console.output import print_json
from maskline.console.schema.asyncapi import asyncapi_document
from maskline.console.schema.json_schemas import (
    JsonObject,
    call_summary_schema,
    events_schema,
    forward_schema,
)
from maskline.runtime.cli import CommandParser
from maskline.schemas.errors import ConfigError

DOCUMENTS: Final[dict[str, Callable[[], JsonObject]]] = {
    "events": events_schema,
    "call-summary": call_summary_schema,
    "forward": forward_schema,
    "asyncapi": asyncapi_document,
}
"""By name: what makes the document. The name of its file in `docs/schema/` ends with `.json`."""


def main(argv: list[str]) -> int:
    """Run `maskline schema` with these arguments; the exit code. Raises ConfigError."""
    parser = CommandParser(
        prog="maskline schema",
        description="Print what programs read: JSON Schemas (2020-12) of events, call summaries and forwarded "
        "messages, and an AsyncAPI 3 document of `maskline.handlers.forward`. Without DOCUMENT, an object with all.",
    )
    parser.add_argument(
        "document", nargs="?", choices=list(DOCUMENTS), metavar="DOCUMENT", help=", ".join(DOCUMENTS)
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="write each document to a file in DIR instead"
    )
    parser.add_argument("--json", action="store_true", help="as without it: the output is JSON")
    arguments = parser.parse_args(argv)
    names = [arguments.document] if arguments.document else list(DOCUMENTS)
    if arguments.directory is not None:
        _write(arguments.directory, names)
        return 0
    documents = {name: DOCUMENTS[name]() for name in names}
    print_json(documents[arguments.document] if arguments.document else documents)
    return 0


def as_text(document: Any) -> str:
    """A document as its file has it."""
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def _write(directory: Path, names: list[str]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = directory / f"{name}.json"
            path.write_bytes(as_text(DOCUMENTS[name]()).encode())
            print(path)
    except OSError as error:
        raise ConfigError(f"schema: --directory {directory}: {error.strerror}") from error
