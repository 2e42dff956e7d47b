"""What `maskline pause` and `maskline resume` share: find the handler, ask, write the change, print it.

Pausing loses nothing and is undone by resuming, so both ask only where somebody can answer: without a terminal they go
on as with `--yes`. A name that no worker is known to have is refused, since a typing error must not look like a paused
handler. While no worker has ever told its handlers there is nothing to compare with, and the command says so.
"""

import argparse
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import hiredis
import msgspec

from maskline.console.confirmation import confirmed
from maskline.console.handler_status import (
    HandlerFacts,
    HandlerStatus,
    handler_status,
    handler_statuses,
    live_workers,
    read_facts,
)
from maskline.console.known_handlers import require_known
from maskline.console.output import note, print_json, printable, utc_time
from maskline.console.redis_reader import RedisReader, query_for, run_with_reader
from maskline.runtime.cli import CommandParser
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import REVISION_FIELD, Pause, encode_pause, pause_field
from maskline.schemas.privacy import redact


class PauseChange(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    handler: str
    paused: bool
    """From now on."""
    changed: bool
    """Whether it was otherwise before."""
    waiting: int
    """Events of it that are set aside already."""
    workers: int
    """Live workers that have it."""
    paused_since: datetime | None
    paused_why: str
    paused_by: str


class Found(NamedTuple):
    """A handler as it is before the change."""

    status: HandlerStatus
    pause: Pause | None
    now_ms: int
    """Redis's time."""

    @property
    def name(self) -> str:
        """The handler's name, harmless for a terminal."""
        return printable(self.status.name)

    @property
    def numbers(self) -> str:
        """How many workers have it, and how much waits, as a part of a sentence."""
        workers, waiting = self.status.workers, self.status.waiting
        have, wait = "has" if workers == 1 else "have", "waits" if waiting == 1 else "wait"
        return (
            f"{workers:,} live worker{'s' if workers != 1 else ''} {have} it, "
            f"and {waiting:,} event{'s' if waiting != 1 else ''} of it {wait}"
        )


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments that both commands take."""
    parser.add_argument("handler", metavar="HANDLER", help="its name, as logs and maskline status show it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print the change as JSON")


def find(handler: str, command: str) -> Found:
    """Look the handler up in Redis. Raises ConfigError, which names `command`, if it is not known."""
    found: list[Found] = []

    async def look(reader: RedisReader) -> int:
        found.append(await _find(reader, handler, command))
        return 0

    _run(look)
    return found[0]


def agreed(question: str, command: str, arguments: argparse.Namespace) -> bool:
    """Whether the operator agrees to the change, or nobody can be asked."""
    nobody = sys.stdin is None or not sys.stdin.isatty()
    if confirmed(question, command, yes=arguments.yes or nobody):
        return True
    note("nothing was changed")
    return False


def write(handler: str, pause: Pause | None) -> None:
    """Begin the handler's pause, or end it."""

    async def change(reader: RedisReader) -> int:
        key, field = reader.keys.control, pause_field(handler)
        await _ask(
            reader,
            ("HDEL", key, field) if pause is None else ("HSET", key, field, encode_pause(pause)),
            ("HINCRBY", key, REVISION_FIELD, 1),
        )
        return 0

    _run(change)


def print_change(found: Found, pause: Pause | None, line: str, *, as_json: bool) -> None:
    """Print what was changed: `line`, or the change as JSON. `pause`: the handler's from now on, None for none."""
    if not as_json:
        sys.stdout.write(line + "\n")
        return
    print_json(
        PauseChange(
            handler=found.status.name,
            paused=pause is not None,
            changed=(pause is None) != (found.pause is None),
            waiting=found.status.waiting,
            workers=found.status.workers,
            paused_since=utc_time(pause.since_ms) if pause is not None and pause.since_ms else None,
            paused_why="" if pause is None else redact(pause.why),
            paused_by="" if pause is None else pause.by,
        )
    )


async def _find(reader: RedisReader, handler: str, command: str) -> Found:
    workers = reader.keys.workers
    time, heartbeats = await _ask(reader, ("TIME",), ("ZRANGE", workers, 0, -1, "WITHSCORES"), key=workers)
    live, now_ms = live_workers(time, heartbeats, reader.settings.lease_ttl_ms)
    facts = await read_facts(reader)
    _check_name(facts, handler, command)
    statuses = {status.name: status for status in handler_statuses(facts, live, now_ms)}
    status = statuses.get(handler) or handler_status(handler, (), None, (), now_ms)
    return Found(status, facts.pauses.get(handler), now_ms)


def _check_name(facts: HandlerFacts, handler: str, command: str) -> None:
    names = facts.names
    if not names:
        note(f"no worker has told its handlers yet: {printable(handler)} may be spelled otherwise in @on")
    else:
        require_known(handler, names, command)


async def _ask(reader: RedisReader, *commands: Sequence[Any], key: str | None = None) -> list[Any]:
    """The replies of the server that has `key`, by default that of the pauses."""
    replies = await reader.send(
        [query_for(reader.keys.control if key is None else key, *command) for command in commands]
    )
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses: {reply}")
    return replies


def _run(command: Callable[[RedisReader], Coroutine[Any, Any, int]]) -> None:
    if code := run_with_reader(command):
        raise SystemExit(code)
