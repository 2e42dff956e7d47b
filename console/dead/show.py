"""`maskline dead show ID`: one dead letter with its traceback and original request.

Phone numbers are shown as tokens, the same as in the logs, unless `--reveal` asks for them, which is logged.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from maskline.console.dead.letters import Letter, read_whole
from maskline.console.dead.rows import row_of, waiting_behind
from maskline.console.operators import user_name
from maskline.console.output import print_json, printable, shown_parameters, shown_value
from maskline.console.redis_reader import RedisReader
from maskline.runtime.logs import configure_logging, get_logger
from maskline.schemas.callback import RawCallback, decode_callback
from maskline.schemas.decode import parameter_pairs
from maskline.schemas.errors import MasklineError, NotDecodableError, UndecodableEntryError
from maskline.schemas.parameters import parse_parameters
from maskline.schemas.privacy import redact
from maskline.worker.entries.dead_letter import DeadLetter

_log = get_logger("maskline.console")


class NoSuchDeadLetterError(MasklineError):
    """No dead letter has the ID that the operator gave."""


async def run(reader: RedisReader, arguments: argparse.Namespace) -> int:
    """Print the dead letter; the exit code. `arguments`: `id`, `json` and `reveal`.

    Raises NoSuchDeadLetterError.
    """
    configure_logging(reader.settings)
    found = await read_whole(reader, arguments.id)
    if found is None:
        raise NoSuchDeadLetterError(f"there is no dead letter {arguments.id[:60]!r}")
    if arguments.reveal:
        _log.warning("dead letter revealed", id=arguments.id, user=user_name())
    (waiting,) = await waiting_behind(reader, found[:1])
    whole = describe(*found, waiting, reveal=arguments.reveal)
    if arguments.json:
        print_json(whole)
    else:
        for line in _lines(whole):
            print(line)
    return 0


def describe(place: Letter, letter: DeadLetter, waiting: int, *, reveal: bool) -> dict[str, Any]:
    """Everything known about a dead letter, as a JSON object. Without `reveal`, no text in it holds a phone number.

    `waiting`: how many events wait behind it.
    """
    shown = (lambda text: text) if reveal else redact
    whole: dict[str, Any] = msgspec.structs.asdict(row_of(place, waiting))
    whole["entry_id"] = letter.entry_id
    whole["error_type"] = place.head.error_type
    whole["frame"] = place.head.frame
    whole["traceback"] = None if letter.traceback is None else redact(letter.traceback)
    whole["request"] = None
    try:
        callback = decode_callback(letter.callback)
    except UndecodableEntryError:
        whole["foreign_entry"] = {
            shown(_text(name)): shown(_text(value)) for name, value in letter.foreign_fields
        } or shown(_text(letter.callback))
    else:
        whole["request"] = _request(callback, reveal=reveal)
    return whole


def _request(callback: RawCallback, *, reveal: bool) -> dict[str, Any]:
    request: dict[str, Any] = {
        "method": callback.method,
        "content_type": callback.content_type,
        "auth_id": callback.auth_id,
        "replayed": callback.replayed,
    }
    try:
        pairs = parameter_pairs(
            parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
        )
    except NotDecodableError as error:
        request["not_decodable"] = str(error)
        shown = (lambda text: text) if reveal else redact
        return request | {"query": shown(_text(callback.query)), "body": shown(_text(callback.body))}
    request["parameters"] = shown_parameters(pairs, reveal=reveal)
    if reveal:
        request |= {"query": _text(callback.query), "body": _text(callback.body)}
    return request


def _lines(whole: dict[str, Any]) -> Iterator[str]:
    nested = ("request", "traceback", "foreign_entry")
    for name, value in whole.items():
        if name not in nested:
            yield f"{name.replace('_', ' '):16} {shown_value(value)}"
    request = whole["request"]
    if request is not None:
        yield ""
        yield "request"
        for name, value in request.items():
            if name != "parameters":
                yield f"  {name.replace('_', ' '):14} {shown_value(value)}"
        for name, value in request.get("parameters", ()):
            yield f"  {printable(name)} = {printable(value)}"
    if "foreign_entry" in whole:
        yield ""
        yield f"entry            {shown_value(whole['foreign_entry'])}"
    if whole["traceback"]:
        yield ""
        yield from (printable(line) for line in whole["traceback"].splitlines())


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
