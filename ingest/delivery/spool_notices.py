"""Tells workers which partitions this process holds spooled callbacks of, so that they wait for them.

`notice_planner` decides what is to be said. It is said over the connection that callbacks are published over, ahead of
them: an event that this node publishes after an outage never reaches a worker before the notice does. And before a
spooled callback is answered 200, so that what Plivo sends afterwards, by way of whatever node, comes after the notice.

A notice that is lost or refused costs order, and nothing else: nothing waits for it.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import hiredis

from maskline.ingest.delivery.notice_planner import DueNotice, NoticePlanner
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.spool.spool import Spool
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.schemas.spool_notices import write_notice

CHECK_S: Final = 0.25
"""How often it is checked whether a notice is due: how late workers learn that a spool is drained."""

STOP_S: Final = 0.5
"""How long the last notices may take at a stop."""

NOTICE_TASK: Final = "spool notices"

_log = get_logger("maskline.ingest")

_Due = DueNotice[PipelinedConnection]


class SpoolNotices:
    """Writes the notices of one process, from `start` to `stop`."""

    def __init__(self, settings: Settings, spool: Spool, pool: PublisherPool, tasks: BackgroundTasks) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys = Keys(settings.namespace)
        self._spool = spool
        self._pool = pool
        self._tasks = tasks
        self._planner = NoticePlanner[PipelinedConnection]()
        self._task: asyncio.Task[None] | None = None
        self._soon = False
        self._failure_lines = LogRateLimit()
        spool.on_held = self._write_soon
        pool.set_on_attached(self._write_due)

    @property
    def partitions(self) -> int:
        """Of how many partitions this process has said that it holds callbacks."""
        return self._planner.said

    def start(self) -> None:
        """Write notices in the background; those of a new connection are written at once even before."""
        self._task = self._tasks.start(NOTICE_TASK, self._run)

    async def stop(self) -> None:
        """Say of what is drained that it is. What is left in the spool stays said: the next process here drains it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            if replies := self._write_due():
                await asyncio.wait(replies, timeout=STOP_S)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self._write_due()

    def _write_soon(self) -> None:
        """Write what is due in the next turn of the loop, when all callbacks of this one are counted."""
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._write_due)

    def _write_due(self) -> list[asyncio.Future[list[Any]]]:
        """Write the notices that are due. Returns the futures of the replies."""
        self._soon = False
        if not self._spool.callbacks and not self._spool.waiting and not self._planner.said:
            return []
        by_link: dict[PipelinedConnection, list[_Due]] = {}
        for notice in self._planner.plan(self._spool.held_ms(), self._link_of, self._loop.time()):
            by_link.setdefault(notice.link, []).append(notice)
        return [self._write(link, notices) for link, notices in by_link.items()]

    def _write(self, link: PipelinedConnection, notices: Sequence[_Due]) -> asyncio.Future[list[Any]]:
        packed = [
            pack(*write_notice(self._keys.spooled(partition), self._spool.name, held_ms))
            for partition, _, held_ms in notices
        ]
        timeout_s = self._pool.publisher_of(notices[0].partition).silence_timeout_s()
        replies = link.send(b"".join(packed), len(packed), timeout_s=timeout_s, at_once=True)
        replies.add_done_callback(partial(self._on_replies, notices))
        return replies

    def _link_of(self, partition: int) -> PipelinedConnection | None:
        # A partition's number is a partition hash as well.
        connection = self._pool.publisher_of(partition).connection
        return connection if connection is not None and connection.connected else None

    def _on_replies(self, notices: Sequence[_Due], future: asyncio.Future[list[Any]]) -> None:
        if future.cancelled() or future.exception() is not None:
            return  # the next connection says it all again
        for notice, reply in zip(notices, future.result(), strict=True):
            if isinstance(reply, hiredis.ReplyError):
                self._planner.refused(notice, self._loop.time())
                if self._failure_lines.due(str(reply).partition(" ")[0]):
                    _log.warning(
                        "spool notice refused",
                        partition=notice.partition,
                        reply=str(reply),
                        repeats_of_all=self._failure_lines.take_suppressed(),
                    )
