"""`maskline dead groups`: dead letters that failed alike, with one of them as a sample.

A group has one handler, code, error type, frame and message without its variable parts: usually one bug, however many
letters it made. Letters are counted as they are read, and only the groups are kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import msgspec

from maskline.console.dead.letters import Letter, batches_of_all, letters_of_ids
from maskline.console.dead.rows import waiting_behind
from maskline.console.output import counted, note, print_json, printable, shortened, utc_time
from maskline.console.redis_reader import RedisReader
from maskline.schemas.jobs import Selection
from maskline.schemas.privacy import redact

GROUPS_MAX: Final = 10_000
"""Groups kept: more than anybody reads. Letters of further groups are only counted."""

SESSIONS_HELD_MAX: Final = 200_000
"""Sessions kept to count each once, over all groups, some 30 MB; from then on a group's sessions are a lower bound. The
letters of parked queues need none of it: there is one for each session."""

SAMPLE_SHOWN_CHARS: Final = 200


class GroupRow(msgspec.Struct, frozen=True):
    """A group as listed; `--json` prints exactly these fields."""

    group_key: str
    """What `--group` takes."""
    group: str
    """The consumer group (MASKLINE_GROUP) whose workers gave the letters up."""
    handler: str | None
    """None if no handler was reached."""
    code: str
    error_type: str | None
    """The exception, where one was raised."""
    frame: str | None
    """The innermost function of the user's own that it came from, as `file.py:function`."""
    reason: str
    """Of the sample."""
    sample_id: str
    """The latest letter that was read, for `dead show`."""
    count: int
    sessions: int
    sessions_exact: bool
    """Whether `sessions` is their number; otherwise there are at least so many."""
    waiting: int
    """Events that wait behind its letters."""
    first_failed_at: datetime | None
    last_failed_at: datetime | None


class _Group:
    """A group as far as its letters were read."""

    __slots__ = ("count", "exact", "first_ms", "last_ms", "sample", "seen", "sessions", "waiting")

    def __init__(self, sample: Letter) -> None:
        self.sample = sample
        self.count = self.waiting = self.sessions = 0
        self.first_ms = self.last_ms = sample.head.failed_at_ms
        self.seen: set[str] = set()
        self.exact = True


class LetterGroups:
    """Sums letters up by group. `left_out`: letters that belong to none of the first GROUPS_MAX groups."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        self._sessions_held = 0
        self.left_out = 0

    def add(self, letter: Letter, waiting: int) -> None:
        """Count a letter; `waiting`: the events behind it."""
        head = letter.head
        key = (head.group, letter.group_key)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                self.left_out += 1
                return
            group = self._groups[key] = _Group(letter)
        group.count += 1
        group.waiting += waiting
        at_ms = head.failed_at_ms
        if at_ms < group.first_ms:
            group.first_ms = at_ms
        elif at_ms > group.last_ms:
            group.last_ms, group.sample = at_ms, letter
        if head.parked:
            group.sessions += 1
        elif head.session_uuid is not None and head.session_uuid not in group.seen:
            self._add_session(group, head.session_uuid)

    def rows(self) -> list[GroupRow]:
        """The groups, those with the most letters first."""
        rows = [_row(key, group) for key, group in self._groups.items()]
        return sorted(rows, key=lambda row: (-row.count, row.group_key, row.group))

    def _add_session(self, group: _Group, session_uuid: str) -> None:
        if self._sessions_held < SESSIONS_HELD_MAX:
            self._sessions_held += 1
            group.seen.add(session_uuid)
            group.sessions += 1
        else:
            group.exact = False


def _row(key: tuple[str, str], group: _Group) -> GroupRow:
    consumer_group, group_key = key
    head = group.sample.head
    return GroupRow(
        group_key=group_key,
        group=consumer_group,
        handler=head.handler,
        code=head.code,
        error_type=head.error_type,
        frame=head.frame,
        reason=redact(head.reason),
        sample_id=group.sample.id,
        count=group.count,
        sessions=group.sessions,
        sessions_exact=group.exact,
        waiting=group.waiting,
        first_failed_at=utc_time(group.first_ms),
        last_failed_at=utc_time(group.last_ms),
    )


async def read_groups(reader: RedisReader, selection: Selection) -> LetterGroups:
    """The groups of the selected dead letters, of all consumer groups."""
    groups = LetterGroups()

    async def add(letters: Sequence[Letter]) -> None:
        wanted = [it for it in letters if selection.matches(it.head, it.id, it.group_key)]
        for letter, waiting in zip(wanted, await waiting_behind(reader, wanted), strict=True):
            groups.add(letter, waiting)

    if selection.ids:
        await add([letter async for letter in letters_of_ids(reader, dict.fromkeys(selection.ids))])
    else:
        async for batch in batches_of_all(reader):
            await add(batch)
    return groups


async def run(reader: RedisReader, arguments: argparse.Namespace, selection: Selection) -> int:
    """Print the groups; the exit code. `arguments`: `json` and `limit`."""
    groups = await read_groups(reader, selection)
    rows = groups.rows()[: arguments.limit]
    if groups.left_out:
        note(f"there are more than {GROUPS_MAX:,} groups: {groups.left_out:,} dead letters are not in these")
    if arguments.json:
        print_json(rows)
        return 0
    for line in _lines(rows):
        print(line)
    print(
        f"{counted(len(rows), 'group')} of {counted(sum(row.count for row in rows), 'dead letter')}"
        if rows
        else "no dead letters"
    )
    return 0


def _lines(rows: Sequence[GroupRow]) -> Iterator[str]:
    for row in rows:
        failed = " in ".join(filter(None, (row.error_type or row.code.replace("_", " "), row.frame)))
        yield f"{row.group_key}  {printable(row.handler or 'no handler')}: {printable(failed)}"
        sessions = ("" if row.sessions_exact else "at least ") + counted(row.sessions, "session")
        yield (
            f"    {counted(row.count, 'dead letter')} of {sessions}, {counted(row.waiting, 'event')} behind; "
            f"{_time(row.first_failed_at)} to {_time(row.last_failed_at)} UTC"
        )
        yield f"    {row.sample_id}  {shortened(row.reason, SAMPLE_SHOWN_CHARS)}"
        yield ""


def _time(moment: datetime | None) -> str:
    return "?" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
