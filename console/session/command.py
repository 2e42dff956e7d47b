"""`maskline session UUID`: one session as people think of it, or as a file that a test can replay."""

import argparse
from pathlib import Path
from typing import Final

from maskline.console.output import counted, note, print_json, printable, utc_time
from maskline.console.redis_reader import RedisReader, run_with_reader
from maskline.console.session.call_bars import DIALLED, FAILED, RINGING, TALKING
from maskline.console.session.drawing import draw, lines_of_gone
from maskline.console.session.export import make_export, require_new, write_file
from maskline.console.session.facts import SessionFacts
from maskline.console.session.progress import progress
from maskline.console.session.reading import is_known_as, read_session
from maskline.console.session.report import SessionReport, report_of
from maskline.console.session.standing import judge
from maskline.console.tables import plain_console
from maskline.runtime.cli import CommandParser
from maskline.schemas.decode import SESSION_UUID_CHARS_MAX
from maskline.schemas.errors import ConfigError, MasklineError
from maskline.schemas.settings import Settings
from maskline.worker.ordering.reorder import Policy

PLAIN_WIDTH: Final = 80
"""Columns of the drawing where stdout is no terminal."""


class NoSuchSessionError(MasklineError):
    """Redis has nothing of the session that the operator named."""


def main(argv: list[str]) -> int:
    """Run `maskline session` with these arguments; the exit code."""
    parser = CommandParser(
        prog="maskline session",
        description="What happened in a masking session, and what waits in it now. Phone numbers are shown as the "
        "tokens that logs have. --export writes the session to a file that a test can replay "
        "(maskline.testing.Harness.replay), with fictional numbers in place of the real ones. Exit code 1 if nothing "
        "is known of the session.",
    )
    parser.add_argument("uuid", metavar="UUID", help="its SessionUUID, letter by letter")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the session's callbacks to a new file"
    )
    parser.add_argument("--force", action="store_true", help="--export may overwrite the file")
    arguments = parser.parse_args(argv)
    _check(arguments)
    return run_with_reader(lambda reader: _run(reader, arguments))


def _check(arguments: argparse.Namespace) -> None:
    uuid: str = arguments.uuid
    if not uuid or len(uuid) > SESSION_UUID_CHARS_MAX:
        raise ConfigError(
            f"session: a SessionUUID has 1 to {SESSION_UUID_CHARS_MAX} characters, not {len(uuid)}"
        )
    try:
        uuid.encode()
    except UnicodeEncodeError:
        raise ConfigError("session: the SessionUUID is not UTF-8") from None
    if arguments.export is not None:
        require_new(arguments.export, force=arguments.force)


async def _run(reader: RedisReader, arguments: argparse.Namespace) -> int:
    facts = await read_session(reader, arguments.uuid)
    if facts.is_unknown:
        raise NoSuchSessionError(await _unknown_line(reader, arguments.uuid, facts))
    settings = reader.settings
    policy = policy_of(settings)
    standing = judge(facts, policy, recording_shared=settings.recording_sequence == "shared")
    report = report_of(facts, standing)
    if arguments.export is not None:
        with progress("rewriting", len(facts.callbacks)) as show:
            content = make_export(facts, settings, policy, complete=report.complete, on_progress=show)
        write_file(arguments.export, content, force=arguments.force)
        _tell_export(report, arguments)
    elif arguments.json:
        print_json(report)
    else:
        print_lines(report)
    return 0


def print_lines(report: SessionReport) -> None:
    """Print the drawing on stdout: in colours and as wide as the terminal is, or as plain text of 80 columns."""
    console = plain_console()
    width = console.width if console.is_terminal else PLAIN_WIDTH
    for line in draw(report, width):
        line.plain = _writable(line.plain, console.encoding)
        console.print(line)


def _writable(text: str, encoding: str) -> str:
    """A text of the same length that stdout can write: without UTF-8 the drawing is made of ASCII."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII_SIGNS).encode(encoding, "replace").decode(encoding)
    return text


_ASCII_SIGNS: Final = str.maketrans({DIALLED: ".", RINGING: "-", TALKING: "=", FAILED: "x", "…": "."})


def _tell_export(report: SessionReport, arguments: argparse.Namespace) -> None:
    if arguments.json:
        gone = report.gone
        print_json(
            {"file": str(arguments.export), "callbacks": report.callbacks - gone.beyond}
            | {"complete": report.complete, "gone": gone}
        )
        return
    count = counted(report.callbacks - report.gone.beyond, "callback")
    print(f"{printable(str(arguments.export))}: {count}, with fictional numbers")
    for line in lines_of_gone(report):
        note(line.plain)
    if not report.complete:
        note("the file does not have the whole session: a replay begins with a gap")


def policy_of(settings: Settings) -> Policy:
    """The rules of order, as the settings have them."""
    return Policy(
        settings.gap_timeout_ms,
        settings.first_sequence,
        settings.held_max,
        gap_spool_ms=settings.gap_spool_ms,
    )


async def _unknown_line(reader: RedisReader, uuid: str, facts: SessionFacts) -> str:
    """Why nothing is shown: no such session, another spelling, or it is too long ago."""
    line = f"nothing is known of a session {printable(uuid)!r}"
    for other in dict.fromkeys((uuid.strip(), uuid.strip().lower(), uuid.strip().upper())):
        if other and other != uuid and await is_known_as(reader, other):
            return f"{line}; there is one {printable(other)!r}"
    kept_since = None if facts.stream.kept_since_ms is None else utc_time(facts.stream.kept_since_ms)
    if kept_since is None or not facts.stream.trimmed:
        return line
    return f"{line}: callbacks from before {kept_since:%Y-%m-%d %H:%M:%S} UTC are not retained any more"
