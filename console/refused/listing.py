"""`maskline refused list`: groups of refused callbacks by their reason, and the latest ones of a selection."""

import argparse
from collections import deque
from datetime import datetime
from typing import Final

import msgspec
from rich import box
from rich.table import Table

from maskline.console.output import print_json, printable, utc_time
from maskline.console.redis_reader import RedisReader, entry_order
from maskline.console.refused.kept_requests import KeptRequest, pages
from maskline.console.refused.request_view import view_of
from maskline.console.selectors import RefusedSelection
from maskline.console.tables import print_table
from maskline.ingest.refused.request import share_of
from maskline.schemas.privacy import redact

CLIENTS_COUNTED_MAX: Final = 10_000
"""Addresses that are told apart in one group; a flood from more is a flood."""
LATEST_DEFAULT: Final = 20


class ReasonGroup(msgspec.Struct):
    """The callbacks that were refused for one reason; part of `--json`."""

    reason: str
    status: int
    count: int = 0
    size_bytes: int = 0
    """Of heads and bodies."""
    clients: int = 0
    """Addresses that they came from, an IPv6 one counted by its /64 network; CLIENTS_COUNTED_MAX at most."""
    first_received_at: datetime | None = None
    last_received_at: datetime | None = None
    latest_id: str = ""


class RefusedRow(msgspec.Struct, frozen=True):
    """One refused callback; part of `--json`."""

    id: str
    reason: str
    status: int
    received_at: datetime | None
    client: str
    method: str
    path: str
    session_uuid: str | None
    """As the request says, whoever sent it."""
    event_name: str | None
    size_bytes: int


class _Groups:
    """The groups of what was added, which is not kept."""

    def __init__(self) -> None:
        self._by_reason: dict[tuple[str, int], tuple[ReasonGroup, set[str]]] = {}

    def add(self, kept: KeptRequest) -> None:
        """Count a request in its group."""
        request = kept.request
        place = request.code, request.status
        group, clients = self._by_reason.setdefault(place, (ReasonGroup(*place), set()))
        group.count += 1
        group.size_bytes += _size_of(kept)
        group.latest_id = kept.id
        at = utc_time(request.received_at_ms)
        if at is not None:
            group.first_received_at = min(group.first_received_at or at, at)
            group.last_received_at = max(group.last_received_at or at, at)
        if len(clients) < CLIENTS_COUNTED_MAX:
            clients.add(share_of(request.client))
            group.clients = len(clients)

    def largest_first(self) -> list[ReasonGroup]:
        """All groups, those with the most requests first."""
        return sorted(
            (group for group, _ in self._by_reason.values()), key=lambda each: (-each.count, each.reason)
        )


async def run(reader: RedisReader, arguments: argparse.Namespace, selection: RefusedSelection) -> int:
    """Print the groups, and with a selection its latest callbacks; the exit code.

    `arguments`: `all`, `limit` and `json`.
    """
    groups, latest = _Groups(), deque[KeptRequest](maxlen=arguments.limit)
    async for page in pages(reader, selection):
        for kept in page:
            groups.add(kept)
        latest.extend(page)
    rows = [_row(kept) for kept in latest]
    if arguments.json:
        print_json({"groups": groups.largest_first(), "requests": rows})
        return 0
    found = groups.largest_first()
    if not found:
        print("no refused callbacks")
        return 0
    _print_groups(found)
    if selection != RefusedSelection() or arguments.all:
        _print_rows(rows)
    latest_id = max((group.latest_id for group in found), key=entry_order)
    print(
        f"\n{sum(group.count for group in found):,} in all. `maskline refused show {latest_id}` shows the latest,\n"
        "`maskline refused release --all --dry-run` says how many are good now"
    )
    return 0


def _print_groups(groups: list[ReasonGroup]) -> None:
    table = Table(box=None, pad_edge=False)  # 80 columns hold it
    for name in ("refused as", "callbacks", "MiB", "clients", "first, UTC", "last, UTC"):
        is_number = name in ("callbacks", "MiB", "clients")
        table.add_column(name, no_wrap=True, justify="right" if is_number else "left")
    for group in groups:
        table.add_row(
            f"{group.status} {printable(group.reason)}",
            f"{group.count:,}",
            f"{group.size_bytes / 2**20:,.1f}",
            f"{group.clients:,}",
            _without_year(group.first_received_at),
            _without_year(group.last_received_at),
        )
    print_table(table)


def _print_rows(rows: list[RefusedRow]) -> None:
    table = Table(box=box.SIMPLE)
    for name in ("id", "received", "reason", "client", "method", "path", "session", "event"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row.id,
            _seconds(row.received_at),
            printable(row.reason),
            printable(row.client),
            row.method,
            printable(row.path),
            printable(row.session_uuid or ""),
            printable(row.event_name or ""),
        )
    print_table(table)


def _row(kept: KeptRequest) -> RefusedRow:
    request, view = kept.request, view_of(kept.request)
    session, event = view.first("SessionUUID"), view.first("EventName")
    return RefusedRow(
        id=kept.id,
        reason=request.code,
        status=request.status,
        received_at=utc_time(request.received_at_ms),
        client=request.client,
        method=view.method,
        path=view.path,
        session_uuid=session and redact(session),
        event_name=event and redact(event),
        size_bytes=_size_of(kept),
    )


def _size_of(kept: KeptRequest) -> int:
    return len(kept.request.head) + len(kept.request.body)


def _without_year(moment: datetime | None) -> str:
    return _seconds(moment).partition("-")[2] or "?"


def _seconds(moment: datetime | None) -> str:
    return "?" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
