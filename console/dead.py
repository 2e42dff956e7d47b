"""`maskline dead list` and `maskline dead show ID`: the callbacks that could not be handled, and why.

Phone numbers are shown as tokens, the same as in the logs, unless `--reveal` asks for them, which is logged.
"""

import argparse
import getpass
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import hiredis
import msgspec
from rich import box
from rich.table import Table

from maskline.console.arguments import positive
from maskline.console.dead_letters import all_letters, decode_entry, latest_letters
from maskline.console.redis_reader import RedisReader, query_for, run_with_reader
from maskline.console.tables import print_table
from maskline.runtime.cli import CommandParser
from maskline.runtime.logs import configure_logging, get_logger
from maskline.schemas.callback import RawCallback, decode_callback
from maskline.schemas.decode import parameter_pairs
from maskline.schemas.errors import MasklineError, NotDecodableError, UndecodableEntryError
from maskline.schemas.parameters import parse_parameters
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact
from maskline.worker.entries.dead_letter import DeadLetter, public_id, split_public_id

REASON_SHOWN_CHARS: Final = 60

_log = get_logger("maskline.console")


class NoSuchDeadLetterError(MasklineError):
    """No dead letter has the ID that the operator gave."""


class DeadLetterRow(msgspec.Struct, frozen=True):
    """A dead letter as listed; `--json` prints exactly these fields."""

    id: str
    session_uuid: str | None
    event_name: str | None
    sequence_number: int | None
    handler: str | None
    """None if no handler was reached."""
    code: str
    reason: str
    attempts: int
    received_at: datetime | None
    failed_at: datetime
    group: str
    partition: int


def main(argv: list[str]) -> int:
    """Run `maskline dead` with these arguments; the exit code."""
    arguments = _parser().parse_args(argv)
    command: int = arguments.run(arguments)
    return command


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline dead", description="The callbacks that could not be handled, and why."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="all dead letters, oldest first")
    listing.add_argument("--json", action="store_true", help="an array of objects")
    listing.add_argument("--session", metavar="UUID", help="of this session only")
    listing.add_argument("--limit", type=positive, metavar="N", help="only the latest N")
    listing.set_defaults(run=_list)
    showing = commands.add_parser("show", help="one dead letter with its traceback and original request")
    showing.add_argument("id", help="as the list has it")
    showing.add_argument("--json", action="store_true", help="as JSON")
    showing.add_argument("--reveal", action="store_true", help="show phone numbers; that you did is logged")
    showing.set_defaults(run=_show)
    return parser


# List


def _list(arguments: argparse.Namespace) -> int:
    async def command(reader: RedisReader) -> int:
        rows = await read_rows(reader, arguments.session or "", arguments.limit)
        if arguments.json:
            _print_json(rows)
        else:
            _print_rows(rows)
        return 0

    return run_with_reader(command)


async def read_rows(reader: RedisReader, session: str = "", limit: int | None = None) -> list[DeadLetterRow]:
    """Dead letters in the order in which they were given up: all, those of a session, the latest `limit`, or both.

    Keeps their rows in memory, not their callbacks.
    """

    def wanted(letter: DeadLetter) -> bool:
        return not session or letter.session_uuid == session

    if limit is not None:
        rows = [_row(*letter) for letter in await latest_letters(reader, limit, wanted)]
    else:
        rows = [_row(*letter) async for letter in all_letters(reader) if wanted(letter[2])]
    return sorted(rows, key=lambda row: (row.failed_at, row.partition, row.id))


def _row(partition: int, entry_id: str, letter: DeadLetter) -> DeadLetterRow:
    return DeadLetterRow(
        id=public_id(partition, entry_id),
        session_uuid=letter.session_uuid,
        event_name=letter.event_name,
        sequence_number=letter.sequence_number,
        handler=letter.handler,
        code=letter.code,
        reason=redact(letter.reason),
        attempts=letter.attempts,
        received_at=None if letter.received_at_ms is None else _time(letter.received_at_ms),
        failed_at=_time(letter.failed_at_ms)
        or _time(int(entry_id.partition("-")[0]))
        or datetime.max.replace(tzinfo=UTC),
        group=letter.group,
        partition=partition,
    )


def _print_rows(rows: list[DeadLetterRow]) -> None:
    if rows:
        table = Table(box=box.SIMPLE)
        for name in ("id", "failed at", "session", "event", "number", "handler", "tries", "reason"):
            table.add_column(name, no_wrap=True)
        for row in rows:
            reason = _printable(" ".join(row.reason.split()))
            table.add_row(
                row.id,
                f"{row.failed_at:%Y-%m-%d %H:%M:%S}",
                _printable(row.session_uuid or ""),
                _printable(row.event_name or ""),
                "" if row.sequence_number is None else str(row.sequence_number),
                row.handler or "none",
                str(row.attempts),
                reason if len(reason) <= REASON_SHOWN_CHARS else reason[: REASON_SHOWN_CHARS - 1] + "…",
            )
        print_table(table)
    print(f"{len(rows):,} dead letters" if rows else "no dead letters")


# Show


def _show(arguments: argparse.Namespace) -> int:
    async def command(reader: RedisReader) -> int:
        configure_logging(reader.settings)
        partition, entry_id, letter = await _read_letter(reader, arguments.id)
        if arguments.reveal:
            _log.warning("dead letter revealed", id=arguments.id, user=_user())
        whole = describe(partition, entry_id, letter, reveal=arguments.reveal)
        if arguments.json:
            _print_json(whole)
        else:
            for line in _lines(whole):
                print(line)
        return 0

    return run_with_reader(command)


async def _read_letter(reader: RedisReader, text: str) -> tuple[int, str, DeadLetter]:
    unknown = NoSuchDeadLetterError(f"there is no dead letter {text[:60]!r}")
    try:
        partition, entry_id = split_public_id(text)
    except ValueError:
        raise unknown from None
    if not 0 <= partition < reader.partitions:
        raise unknown
    stream = reader.keys.dead(partition)
    (reply,) = await reader.send([query_for(stream, "XRANGE", stream, entry_id, entry_id, "COUNT", 1)])
    if not reply or isinstance(reply, hiredis.ReplyError):
        raise unknown
    _, letter = decode_entry(reply[0])
    if letter is None:
        raise unknown
    return partition, entry_id, letter


def describe(partition: int, entry_id: str, letter: DeadLetter, *, reveal: bool) -> dict[str, Any]:
    """Everything known about a dead letter, as a JSON object. Without `reveal`, no text in it holds a phone number."""
    shown = (lambda text: text) if reveal else redact
    whole: dict[str, Any] = msgspec.structs.asdict(_row(partition, entry_id, letter))
    whole["entry_id"] = letter.entry_id
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
    request["parameters"] = [
        [name, value] if reveal else [redact(name), _redacted(name, value)] for name, value in pairs
    ]
    if reveal:
        request |= {"query": _text(callback.query), "body": _text(callback.body)}
    return request


def _redacted(name: str, value: str) -> str:
    if name in NUMBER_ATTRIBUTES and value:
        return number_token(value)
    return redact(value)


def _lines(whole: dict[str, Any]) -> Iterator[str]:
    nested = ("request", "traceback", "foreign_entry")
    for name, value in whole.items():
        if name not in nested:
            yield f"{name.replace('_', ' '):16} {_shown(value)}"
    request = whole["request"]
    if request is not None:
        yield ""
        yield "request"
        for name, value in request.items():
            if name != "parameters":
                yield f"  {name.replace('_', ' '):14} {_shown(value)}"
        for name, value in request.get("parameters", ()):
            yield f"  {_printable(name)} = {_printable(value)}"
    if "foreign_entry" in whole:
        yield ""
        yield f"entry            {_shown(whole['foreign_entry'])}"
    if whole["traceback"]:
        yield ""
        yield from (_printable(line) for line in whole["traceback"].splitlines())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:%Y-%m-%d %H:%M:%S.%f} UTC" if isinstance(value, datetime) else _printable(str(value))


def _printable(text: str) -> str:
    """Escape control characters: a text from outside must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _time(milliseconds: int) -> datetime | None:
    """Milliseconds since the epoch as a time in UTC; None outside the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
