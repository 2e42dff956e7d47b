"""`maskline status`: shows the owners of partitions, waiting callbacks, the handlers, and dead letters.

The exit code is 1 if something needs a person: no live worker, callbacks waiting in partitions without an owner, a
Redis that is nearly full or filled by dead letters, a handler that is down for long, events that wait for a handler
that nobody runs. A handler that fails, a pause and a few dead letters are warnings, as the system works.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from time import time_ns
from typing import Any, Final

import hiredis
import msgspec
from rich import box
from rich.table import Table

from maskline.console.handler_status import (
    HandlerStatus,
    find_handler_problems,
    find_handler_warnings,
    handler_statuses,
    handlers_table,
    live_workers,
    read_facts,
)
from maskline.console.redis_reader import Query, RedisReader, query_for, run_with_reader
from maskline.console.tables import plain_console, print_table
from maskline.runtime.cli import CommandParser
from maskline.runtime.redis.pipeline import pack
from maskline.runtime.redis.server_checks import MEMORY_HIGH, parse_info
from maskline.schemas.errors import RedisUnavailableError
from maskline.worker.partitions.dead_letter_counts import held_bytes, size_of

PER_PARTITION: Final = 6
"""Commands about one partition, whose replies `_read_partition` takes in their order."""
WORKERS_NAMED_MAX: Final = 20
"""Workers listed for a reader; `--json` has them all."""


DEAD_NEAR: Final = 0.8
"""Share of MASKLINE_DEAD_MAX_BYTES above which somebody is needed: at the bound, giving up waits."""

DEAD_HIGH: Final = 0.25
"""Share of maxmemory above which dead letters are a problem: they stay, and leave less room for new callbacks."""


class PartitionStatus(msgspec.Struct, frozen=True):
    """One partition as seen by the group; part of `--json`."""

    partition: int
    owner: str | None
    """The worker's ID; None if no worker holds the lease."""
    fencing_token: int | None
    lease_ms: int | None
    """Milliseconds until the lease expires."""
    stored: int
    """Callbacks in the stream, handled ones in retention included."""
    unread: int
    """Callbacks after the group's cursor."""
    pending: int
    """Callbacks read and not finished: under way, or waiting for a missing number. Not those that are set aside for
    a handler."""
    dead_letters: int
    dead_bytes: int | None = None
    """Redis memory that they take, roughly, in bytes; None if the server does not report it."""

    @property
    def waiting(self) -> int:
        """Callbacks that are not handled yet."""
        return self.unread + self.pending


class RedisStatus(msgspec.Struct, frozen=True):
    """The server, or one of a cluster; part of `--json`."""

    address: str
    connected_to: list[str]
    """The addresses that its name, or names, resolved to, as ip:port."""
    version: str
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: str


class Status(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    namespace: str
    group: str
    healthy: bool
    problems: list[str]
    warnings: list[str]
    """Warnings: they need no person yet, but may later."""
    workers: dict[str, int]
    """Number of partitions by the ID of a live worker."""
    stored: int
    unread: int
    pending: int
    set_aside: int
    """Events that wait for a handler in retry queues; one that waits for two handlers counts twice."""
    parked: int
    """Those of them that wait behind a dead letter."""
    dead_letters: int
    refused: int
    """Refused callbacks that could be Plivo's, kept for `maskline refused release`."""
    dead_bytes: int | None
    dead_held_bytes: int
    """Memory that dead letters and what waits behind them take, roughly: what MASKLINE_DEAD_MAX_BYTES bounds."""
    dead_max_bytes: int
    redis: RedisStatus
    handlers: list[HandlerStatus]
    partitions: list[PartitionStatus]


def main(argv: list[str]) -> int:
    """Run `maskline status` with these arguments; the exit code is 1 if there are problems."""
    parser = CommandParser(
        prog="maskline status",
        description="Who owns which partitions, what waits, which handlers fail, what was given up. Exit code 1 if "
        "no worker lives, callbacks wait in partitions that nobody owns, Redis is nearly full, a handler is down for "
        "more than five minutes, or events wait for a handler that no worker has.",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--all", action="store_true", help="list quiet partitions and handlers as well")
    arguments = parser.parse_args(argv)

    async def show(reader: RedisReader) -> int:
        status = await read_status(reader)
        if arguments.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(status)).decode() + "\n")
        else:
            _print_status(status, everything=arguments.all)
        return 0 if status.healthy else 1

    return run_with_reader(show)


async def read_status(reader: RedisReader) -> Status:
    """Read the status of all partitions, workers and the server. Raises RedisUnavailableError."""
    keys, settings = reader.keys, reader.settings
    commands = [
        Query(None, pack("INFO", "server")),
        Query(None, pack("INFO", "memory")),
        query_for(keys.workers, "TIME"),  # of the server whose clock dates the heartbeats
        query_for(keys.workers, "ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
        query_for(keys.refused.requests, "XLEN", keys.refused.requests),
    ]
    for number in range(reader.partitions):
        lease, callbacks, dead = keys.lease(number), keys.callbacks(number), keys.dead(number)
        commands += [
            query_for(lease, "GET", lease),
            query_for(lease, "PTTL", lease),
            query_for(callbacks, "XLEN", callbacks),
            query_for(callbacks, "XINFO", "GROUPS", callbacks),
            query_for(dead, "XLEN", dead),
            query_for(dead, "MEMORY", "USAGE", dead, "SAMPLES", 1),
        ]
    server, memory, time, heartbeats, refused, *replies = await reader.send(commands)
    for reply in (server, memory, time, heartbeats, refused):
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses: {reply}")
    partitions = [
        _read_partition(number, settings.group, replies[number * PER_PARTITION :][:PER_PARTITION])
        for number in range(reader.partitions)
    ]
    live, now_ms = live_workers(time, heartbeats, settings.lease_ttl_ms)
    owned = Counter(partition.owner for partition in partitions if partition.owner is not None)
    # A worker that holds a lease counts as live, even if its heartbeat is late.
    workers = {name: owned[name] for name in sorted({*live, *owned})}
    redis = _redis_status(reader, parse_info(server) | parse_info(memory))
    handlers = handler_statuses(await read_facts(reader), workers, now_ms)
    parked, letters = sum(handler.parked for handler in handlers), sum(one.dead_letters for one in partitions)
    held = held_bytes(letters, dead_bytes_of(partitions), parked)
    problems = [
        *find_problems(workers, partitions),
        *find_handler_problems(handlers, now_ms, workers=len(workers), dead_ttl_s=settings.dead_ttl_s),
        *find_shortages(redis, partitions),
        *find_dead_bound(held, settings.dead_max_bytes),
    ]
    return Status(
        namespace=settings.namespace,
        group=settings.group,
        healthy=not problems,
        problems=problems,
        warnings=[
            *find_handler_warnings(handlers, now_ms),
            *find_warnings(redis, partitions),
            *find_refused(refused),
        ],
        workers=workers,
        stored=sum(partition.stored for partition in partitions),
        unread=sum(partition.unread for partition in partitions),
        pending=sum(partition.pending for partition in partitions),
        set_aside=sum(handler.waiting for handler in handlers),
        parked=parked,
        dead_letters=letters,
        refused=refused,
        dead_bytes=dead_bytes_of(partitions),
        dead_held_bytes=held,
        dead_max_bytes=settings.dead_max_bytes,
        redis=redis,
        handlers=handlers,
        partitions=partitions,
    )


def find_problems(workers: dict[str, int], partitions: Sequence[PartitionStatus]) -> Iterator[str]:
    """Lines about what needs a person: no live worker, or callbacks waiting in partitions without an owner."""
    if not workers:
        yield "no worker is alive"
    stuck = [partition for partition in partitions if partition.owner is None and partition.waiting]
    if stuck:
        waiting = sum(partition.waiting for partition in stuck)
        yield f"{waiting:,} callbacks wait in {len(stuck):,} partitions that nobody owns"


def find_shortages(redis: RedisStatus, partitions: Sequence[PartitionStatus]) -> Iterator[str]:
    """Lines about memory that will run out unless a person acts."""
    limit, used, dead_bytes = redis.maxmemory_bytes, redis.used_memory_bytes, dead_bytes_of(partitions) or 0
    if limit and used > MEMORY_HIGH * limit:
        yield f"{used / limit:.0%} of Redis's maxmemory are used: full, it takes no callbacks"
    if limit and dead_bytes > DEAD_HIGH * limit:
        yield f"dead letters take {_mib(dead_bytes)} MiB, {dead_bytes / limit:.0%} of Redis's maxmemory"


def find_dead_bound(held: int, max_bytes: int) -> Iterator[str]:
    """A line about dead letters, and what waits behind them, that near MASKLINE_DEAD_MAX_BYTES. Both in bytes."""
    if held >= DEAD_NEAR * max_bytes:
        yield (
            f"dead letters and what waits behind them take {_mib(held)} MiB, {held / max_bytes:.0%} of "
            "MASKLINE_DEAD_MAX_BYTES: at it, giving up waits; replay or discard them: maskline dead groups"
        )


def find_refused(refused: int) -> Iterator[str]:
    """A line about refused callbacks that are kept for a release, if there are any."""
    if refused:
        yield f"{refused:,} refused callbacks that could be Plivo's are kept: maskline refused list"


def find_warnings(redis: RedisStatus, partitions: Sequence[PartitionStatus]) -> Iterator[str]:
    """Lines about what needs no person yet."""
    dead, dead_bytes = sum(partition.dead_letters for partition in partitions), dead_bytes_of(partitions)
    if dead:
        size = "" if dead_bytes is None else f", {_mib(dead_bytes)} MiB of Redis's memory"
        yield f"{dead:,} dead letters{size}: maskline dead list"
    if not redis.maxmemory_bytes:
        yield "Redis has no maxmemory: it may take all of its machine's"


def dead_bytes_of(partitions: Sequence[PartitionStatus]) -> int | None:
    """Bytes that all dead letters take; None if the server does not report them for all partitions."""
    sizes = [partition.dead_bytes for partition in partitions]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f}"


def _read_partition(number: int, group: str, replies: Sequence[Any]) -> PartitionStatus:
    lease, left_ms, stored, groups, dead, dead_size = replies
    if isinstance(groups, hiredis.ReplyError):
        groups = []  # no stream yet
    for reply in (lease, left_ms, stored, dead):
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"partition {number} cannot be read: {reply}")
    token, _, owner = lease.decode().partition(" ") if lease is not None else ("", "", "")
    unread, pending = stored, 0  # of a group that has not begun
    for fields in groups:
        facts = dict(zip(fields[::2], fields[1::2], strict=True))
        if facts[b"name"].decode() == group:
            pending = facts[b"pending"]
            # The server knows no lag where entries around the cursor are gone: what is stored is the most it can be.
            unread = stored if facts.get(b"lag") is None else facts[b"lag"]
    return PartitionStatus(
        partition=number,
        owner=owner or None,
        fencing_token=int(token) if token else None,
        lease_ms=left_ms if lease is not None and left_ms >= 0 else None,
        stored=stored,
        unread=unread,
        pending=pending,
        dead_letters=dead,
        dead_bytes=size_of(dead_size),
    )


def _redis_status(reader: RedisReader, info: dict[str, str]) -> RedisStatus:
    # Valkey says under redis_version which Redis it is compatible with.
    valkey = info.get("valkey_version")
    return RedisStatus(
        address=reader.address,
        connected_to=reader.connected_to,
        version=f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '?')}",
        used_memory_bytes=int(info.get("used_memory", 0)),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        maxmemory_policy=info.get("maxmemory_policy", "?"),
    )


def _print_status(status: Status, *, everything: bool) -> None:
    console = plain_console()
    shown = [
        partition
        for partition in status.partitions
        if everything or partition.waiting or partition.dead_letters or partition.owner is None
    ]
    if shown:
        print_table(_table(shown))
    quiet = len(status.partitions) - len(shown)
    if quiet:
        console.print(
            f"{quiet:,} of {len(status.partitions):,} partitions are owned and have nothing waiting"
        )
    _print_handlers(status, everything=everything)
    for name, owned in list(status.workers.items())[:WORKERS_NAMED_MAX]:
        console.print(f"worker      {name}: {owned:,} partitions")
    if len(status.workers) > WORKERS_NAMED_MAX:
        console.print(f"            and {len(status.workers) - WORKERS_NAMED_MAX:,} more workers")
    redis = status.redis
    limit = f" of {redis.maxmemory_bytes / 2**20:,.1f}" if redis.maxmemory_bytes else ""
    where = ",".join(redis.connected_to)
    where = redis.address if where == redis.address else f"{redis.address} ({where})"
    console.print(
        f"redis       {redis.version} at {where}, {redis.used_memory_bytes / 2**20:,.1f}{limit} MiB used"
    )
    console.print(
        f"group       {status.group} of {status.namespace}: {status.unread:,} unread, {status.pending:,} pending, "
        f"{status.set_aside:,} set aside, {status.stored:,} stored, {status.dead_letters:,} dead letters"
    )
    for warning in status.warnings:
        console.print(f"warning     {warning}", style="yellow")
    for problem in status.problems:
        console.print(f"PROBLEM     {problem}", style="bold red")
    if status.healthy:
        console.print("healthy", style="green")


def _print_handlers(status: Status, *, everything: bool) -> None:
    shown = [
        handler
        for handler in status.handlers
        if everything
        or handler.waiting
        or handler.queues
        or handler.down
        or handler.paused
        or handler.recovering
    ]
    if shown:
        print_table(handlers_table(shown, time_ns() // 1_000_000))


def _table(partitions: Sequence[PartitionStatus]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("partition", "owner", "token", "lease ms", "unread", "pending", "stored", "dead"):
        table.add_column(name, justify="left" if name == "owner" else "right", no_wrap=True)
    for partition in partitions:
        table.add_row(
            str(partition.partition),
            partition.owner or "nobody",
            _optional(partition.fencing_token),
            _optional(partition.lease_ms),
            f"{partition.unread:,}",
            f"{partition.pending:,}",
            f"{partition.stored:,}",
            f"{partition.dead_letters:,}",
        )
    return table


def _optional(value: int | None) -> str:
    return "" if value is None else str(value)
