"""The state of the handlers of a group: what waits for each, which are down or paused, and which nobody runs."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import hiredis
import msgspec
from rich import box
from rich.table import Table

from maskline.console.output import shortened, utc_time
from maskline.console.redis_reader import Query, RedisReader, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import HandlerReport, Pause, decode_reports, read_control
from maskline.schemas.privacy import redact
from maskline.worker.commands.scripts import HandlerBacklog, read_retry_index, retry_index

DOWN_PROBLEM_S: Final = 300.0
"""A handler that is down for longer needs a person. Shorter outages end by themselves, and must not wake one."""

GIVE_UP_SOON: Final = 0.75
"""Share of MASKLINE_DEAD_TTL_S after which what waits behind a dead letter needs a person."""

WHY_SHOWN_CHARS: Final = 60


class HandlerStatus(msgspec.Struct, frozen=True):
    """One handler; part of `maskline status --json`."""

    name: str
    waiting: int
    """Events set aside: they wait in retry queues, the parked ones included."""
    parked: int
    """Those of them that wait behind a dead letter, for an operator."""
    down: bool
    """Down in a live worker: what it calls fails, and it is probed."""
    paused: bool
    oldest_s: float | None
    """For how long events have waited in the retry queue that has been there longest; None if there is none."""
    queues: int = 0
    """Sessions with a retry queue. A parked one may have no events."""
    due_queues: int = 0
    """Those that are to be tried now."""
    parked_queues: int = 0
    next_due_s: float | None = None
    """In how many seconds the next queue is to be tried, 0 if one is now; None if none is waiting for its time."""
    parked_oldest_s: float | None = None
    """For how long the queue that is parked longest is; None if none is."""
    recovering: bool = False
    """In a live worker it is not down any more and works off what has gathered."""
    down_since: datetime | None = None
    down_workers: int = 0
    """Live workers in which it is down."""
    paused_since: datetime | None = None
    paused_why: str = ""
    paused_by: str = ""
    workers: int = 0
    """Live workers that have the handler."""


class HandlerFacts(NamedTuple):
    """What Redis says about the handlers of a group."""

    reports: Mapping[str, Mapping[str, HandlerReport]]
    """By worker, ended ones included, and handler."""
    pauses: Mapping[str, Pause]
    backlogs: Sequence[HandlerBacklog]
    """Of all partitions; one handler has one in each."""

    @property
    def names(self) -> set[str]:
        """All handlers that anything is known of."""
        names = {name for reports in self.reports.values() for name in reports}
        return names | self.pauses.keys() | {backlog.handler for backlog in self.backlogs}


async def read_facts(reader: RedisReader) -> HandlerFacts:
    """Read the facts from all servers. Raises RedisUnavailableError."""
    keys = reader.keys
    await reader.load_scripts()
    queries = [
        query_for(keys.control, "HGETALL", keys.control),
        query_for(keys.handlers, "HGETALL", keys.handlers),
        *(Query(keys.retry_counts(number), retry_index(keys, number)) for number in range(reader.partitions)),
    ]
    control, handlers, *indexes = await reader.send(queries)
    reports = {worker: decode_reports(value) for worker, value in _fields(handlers).items()}
    backlogs = [backlog for index in indexes for backlog in read_retry_index(index)]
    return HandlerFacts(reports, read_control(_fields(control)).paused, backlogs)


def live_workers(time: Any, heartbeats: Any, lease_ttl_ms: int) -> tuple[list[str], int]:
    """The IDs of the workers whose heartbeats are fresh, and the server's time in ms.

    `time`, `heartbeats`: the server's replies to TIME, and to ZRANGE WITHSCORES of the workers' key.
    """
    now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
    live = [
        name.decode()
        for name, beat_ms in zip(heartbeats[::2], heartbeats[1::2], strict=True)
        if float(beat_ms) >= now_ms - lease_ttl_ms
    ]
    return live, now_ms


def handler_statuses(facts: HandlerFacts, live: Collection[str], now_ms: int) -> list[HandlerStatus]:
    """The status of every handler, by name. `live`: the IDs of live workers; what others said does not count.

    Handlers of ended workers for which nothing waits are left out.
    """
    reports: defaultdict[str, list[HandlerReport]] = defaultdict(list)
    backlogs: defaultdict[str, list[HandlerBacklog]] = defaultdict(list)
    for worker, its_reports in facts.reports.items():
        if worker in live:
            for name, report in its_reports.items():
                reports[name].append(report)
    for backlog in facts.backlogs:
        if backlog.waiting or backlog.queues:
            backlogs[backlog.handler].append(backlog)
    names = sorted({*reports, *backlogs, *facts.pauses})
    return [
        handler_status(name, reports[name], facts.pauses.get(name), backlogs[name], now_ms) for name in names
    ]


def handler_status(
    name: str,
    reports: Sequence[HandlerReport],
    pause: Pause | None,
    backlogs: Sequence[HandlerBacklog],
    now_ms: int,
) -> HandlerStatus:
    """Sum up what live workers say about a handler, and what waits for it in each partition."""
    down = [report.down_since_ms for report in reports if report.down_since_ms and not report.recovering]
    parked_ms = [backlog.parked_oldest_ms for backlog in backlogs]
    return HandlerStatus(
        name=name,
        waiting=sum(backlog.waiting for backlog in backlogs),
        parked=sum(backlog.parked for backlog in backlogs),
        down=bool(down),
        paused=pause is not None,
        oldest_s=_seconds(max, [backlog.oldest_ms for backlog in backlogs]),
        queues=sum(backlog.queues for backlog in backlogs),
        due_queues=sum(backlog.due_queues for backlog in backlogs),
        parked_queues=sum(backlog.parked_queues for backlog in backlogs),
        next_due_s=_seconds(min, [backlog.next_due_ms for backlog in backlogs]),
        parked_oldest_s=_seconds(max, parked_ms),
        recovering=any(report.recovering for report in reports),
        down_since=utc_time(min(*down, now_ms)) if down else None,
        down_workers=len(down),
        paused_since=utc_time(pause.since_ms) if pause is not None and pause.since_ms else None,
        paused_why=redact(pause.why) if pause is not None else "",
        paused_by=pause.by if pause is not None else "",
        workers=len(reports),
    )


def find_handler_problems(
    handlers: Sequence[HandlerStatus], now_ms: int, *, workers: int, dead_ttl_s: int
) -> Iterator[str]:
    """Lines about what needs a person. `workers`: the live ones of the group."""
    for handler in handlers:
        if handler.down and not handler.paused and _down_s(handler, now_ms) >= DOWN_PROBLEM_S:
            yield _down_line(handler, now_ms)
        if workers and handler.waiting and not handler.workers:
            yield (
                f"{handler.waiting:,} events wait for the handler {handler.name}, which no live worker has: "
                "load it again, or discard them"
            )
        parked_s = handler.parked_oldest_s or 0.0
        if handler.parked and parked_s >= GIVE_UP_SOON * dead_ttl_s:
            yield (
                f"{handler.parked:,} events wait behind dead letters of {handler.name}, "
                f"the first for {span(parked_s)}: after {span(dead_ttl_s)} they are given up too"
            )


def find_handler_warnings(handlers: Sequence[HandlerStatus], now_ms: int) -> Iterator[str]:
    """Lines about what needs no person yet, or has one already."""
    for handler in handlers:
        if handler.down and not handler.paused and _down_s(handler, now_ms) < DOWN_PROBLEM_S:
            yield _down_line(handler, now_ms)
        if handler.paused:
            yield f"{handler.name} is {pause_text(handler, now_ms)}: maskline resume {handler.name}"
        if handler.parked:
            yield f"{handler.parked:,} events wait behind dead letters of {handler.name}: maskline dead groups"


def handlers_table(handlers: Sequence[HandlerStatus], now_ms: int) -> Table:
    """The table of handlers for a reader."""
    table = Table(box=box.SIMPLE)
    for name in ("handler", "waiting", "due", "next", "parked", "oldest", "state"):
        table.add_column(name, justify="left" if name in ("handler", "state") else "right", no_wrap=True)
    for handler in handlers:
        table.add_row(
            shortened(handler.name, 200),
            f"{handler.waiting:,}",
            f"{handler.due_queues:,}",
            ""
            if handler.next_due_s is None
            else "now"
            if not handler.next_due_s
            else span(handler.next_due_s),
            f"{handler.parked:,}",
            "" if handler.oldest_s is None else span(handler.oldest_s),
            state_text(handler, now_ms),
        )
    return table


def state_text(handler: HandlerStatus, now_ms: int) -> str:
    """What a handler does, in a few words."""
    states = []
    if handler.paused:
        states.append(pause_text(handler, now_ms))
    if handler.down:
        states.append(_down_text(handler, now_ms))
    if handler.recovering:
        states.append("recovering")
    if not handler.workers:
        states.append("no live worker has it")
    return ", ".join(states) or "up"


def pause_text(handler: HandlerStatus, now_ms: int) -> str:
    """`paused for …`, with who paused it and why."""
    by = f" by {shortened(handler.paused_by, WHY_SHOWN_CHARS)}" if handler.paused_by else ""
    why = f" ({shortened(handler.paused_why, WHY_SHOWN_CHARS)})" if handler.paused_why else ""
    return f"paused{_since(handler.paused_since, now_ms)}{by}{why}"


def span(seconds: float) -> str:
    """A time span in its two greatest units at most: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"


def _down_s(handler: HandlerStatus, now_ms: int) -> float:
    return 0.0 if handler.down_since is None else now_ms / 1000 - handler.down_since.timestamp()


def _down_line(handler: HandlerStatus, now_ms: int) -> str:
    return (
        f"{handler.name} is {_down_text(handler, now_ms)}: what it calls fails; "
        f"{handler.waiting:,} events wait, none is lost"
    )


def _down_text(handler: HandlerStatus, now_ms: int) -> str:
    since = _since(handler.down_since, now_ms)
    return f"down{since} in {handler.down_workers:,} of {handler.workers:,} workers"


def _since(time: datetime | None, now_ms: int) -> str:
    return "" if time is None else f" for {span(max(0.0, now_ms / 1000 - time.timestamp()))}"


def _seconds(choose: Any, values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) / 1000 if known else None


def _fields(reply: Any) -> dict[str, bytes]:
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say which handlers there are: {reply}")
    return {name.decode(errors="replace"): value for name, value in zip(reply[::2], reply[1::2], strict=True)}
