"""Inspects each server at every new connection and every INSPECT_INTERVAL_S (`runtime.redis.server_checks`).

A finding is logged when it appears and when it is gone; /readyz shows the present ones.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.server_checks import Finding, ServerReport, inspect_server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import RedisUnavailableError

INSPECT_INTERVAL_S: Final = 15.0
"""As often as Prometheus usually scrapes: a CONFIG SET, or a memory that fills up, shows within that."""

_log = get_logger("maskline.redis")


class ServerMonitor:
    """Inspects the servers of a process and keeps the last report of each, by its address."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._reports: dict[str, ServerReport] = {}

    async def inspect(self, connection: PipelinedConnection, address: str) -> ServerReport:
        """Inspect a server and log what is new. Raises RedisUnavailableError if the connection is lost."""
        report = await inspect_server(connection)
        before = self._reports.get(address)
        self._reports[address] = report
        known = {finding.code for finding in before.findings} if before is not None else set()
        for finding in report.findings:
            if finding.code not in known:
                facts = {"redis": address, "code": finding.code, "hint": finding.text}
                if finding.severity == "error":
                    _log.error("redis check failed", **facts)
                else:
                    _log.warning("redis check failed", **facts)
        if gone := known - {finding.code for finding in report.findings}:
            _log.info("redis check recovered", redis=address, codes=sorted(gone))
        return report

    async def require_supported(self, connection: PipelinedConnection, address: str) -> None:
        """Inspect a server, and raise RedisUnavailableError if it is too old to be used at all."""
        report = await self.inspect(connection, address)
        if report.too_old is not None:
            raise RedisUnavailableError(f"Redis at {address}: {report.too_old.text}")

    async def require_safe(self, connection: PipelinedConnection, address: str) -> None:
        """Inspect a server, and raise RedisUnavailableError if a finding endangers callbacks: none may go there."""
        report = await self.inspect(connection, address)
        if report.errors:
            raise RedisUnavailableError(f"Redis at {address}: {report.errors[0].text}")

    def start(
        self,
        connections: Callable[[], Iterable[tuple[str, PipelinedConnection | None]]],
        on_error: Callable[[PipelinedConnection], None] | None = None,
    ) -> None:
        """Inspect in the background until `stop` what `connections()` returns each time: addresses and connections.

        A server without a connection is not inspected. `on_error`: called with the connection to a server that
        endangers callbacks.
        """
        self._task = self._tasks.start("inspection", partial(self._run, connections, on_error))

    async def stop(self) -> None:
        """End the inspections in the background."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(
        self,
        connections: Callable[[], Iterable[tuple[str, PipelinedConnection | None]]],
        on_error: Callable[[PipelinedConnection], None] | None,
    ) -> None:
        while True:
            await asyncio.sleep(INSPECT_INTERVAL_S)
            present = dict(connections())
            self._reports = {
                address: report for address, report in self._reports.items() if address in present
            }
            there = [
                (connection, address) for address, connection in present.items() if connection is not None
            ]
            await asyncio.gather(
                *(self._inspect_one(connection, address, on_error) for connection, address in there)
            )

    async def _inspect_one(
        self,
        connection: PipelinedConnection,
        address: str,
        on_error: Callable[[PipelinedConnection], None] | None,
    ) -> None:
        try:
            report = await self.inspect(connection, address)
            if report.errors and on_error is not None:
                on_error(connection)
        except RedisUnavailableError:
            return
        except Exception as error:  # noqa: BLE001 - a fault with one server keeps no other from being inspected
            self._tasks.failed("inspection", error)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that endanger callbacks, of all servers."""
        return tuple(finding for report in self._reports.values() for finding in report.errors)

    @property
    def reports(self) -> Mapping[str, ServerReport]:
        """The last report of each server, by its address."""
        return self._reports

    def details(self) -> dict[str, Any]:
        """For /readyz: by address, the version and what was found."""
        return {address: report.details() for address, report in self._reports.items()}
