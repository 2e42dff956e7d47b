"""Sends a renewal request (`worker.leases.planner`) to the servers that hold the leases, and returns their replies.

With a cluster the leases lie on several servers. All are asked at once; a server that is away or slow delays none of
the others. Its late reply still counts, from when it was asked.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import hiredis

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import ServerConnections, WorkerConnections
from maskline.worker.leases.planner import RenewalReply, RenewalRequest

_log = get_logger("maskline.worker")


class _ServerRequest(NamedTuple):
    """The part of a request that goes to one server."""

    server: ServerConnections
    connection: PipelinedConnection
    request: RenewalRequest
    sent_at: float


class LeaseRenewer:
    """Sends renewal requests, one under way for each server at most.

    `lease_ttl_ms`: for how long a lease is renewed. `on_late_reply(request, reply, sent_at)`: called with what a server
    replied after `renew` had returned, and when it was asked, by `lease_clock`.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        *,
        worker_id: str,
        lease_ttl_ms: int,
        on_late_reply: Callable[[RenewalRequest, RenewalReply, float], None],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._worker_id = worker_id
        self._lease_ttl_ms = lease_ttl_ms
        self._on_late_reply = on_late_reply
        self._under_way: dict[ServerConnections, asyncio.Task[RenewalReply]] = {}
        """The requests under way. A server is asked again only when it has answered, or its connection is closed."""
        self._failure_lines = LogRateLimit()

    async def renew(self, request: RenewalRequest, timeout_s: float) -> RenewalReply:
        """Ask the servers; return what they reply within `timeout_s`."""
        asked: dict[asyncio.Task[RenewalReply], _ServerRequest] = {}
        for server_request in self._by_server(request):
            task = asyncio.create_task(self._ask(server_request))
            asked[task] = server_request
            self._under_way[server_request.server] = task
            task.add_done_callback(partial(self._ended, server_request.server))
        if not asked:
            return RenewalReply()
        done, late = await asyncio.wait(asked, timeout=timeout_s)
        for task in late:
            task.add_done_callback(partial(self._replied_late, asked[task]))
        return _merged([task.result() for task in done])

    def _by_server(self, request: RenewalRequest) -> Iterator[_ServerRequest]:
        of_partition, heartbeat_server = self._connections.of_partition, self._connections.heartbeat_server
        for server in self._connections:
            if server.leases is None or not server.up or server in self._under_way:
                continue
            heartbeat = request.heartbeat and server is heartbeat_server
            renew = {
                number: token for number, token in request.renew.items() if of_partition(number) is server
            }
            probe = [number for number in request.probe if of_partition(number) is server]
            if renew or probe or heartbeat:
                its_request = RenewalRequest(heartbeat, renew, probe)
                yield _ServerRequest(server, server.leases, its_request, lease_clock())

    async def _ask(self, server_request: _ServerRequest) -> RenewalReply:
        keys, life_ms = self._keys, self._lease_ttl_ms
        heartbeat, renew, probe = server_request.request
        packed = [
            scripts.renew(keys, number, scripts.lease_value(token, self._worker_id), life_ms)
            for number, token in renew.items()
        ]
        packed += [pack("GET", keys.lease(number)) for number in probe]
        if heartbeat:
            packed.append(scripts.heartbeat(keys, self._worker_id, life_ms))
        try:
            replies = await server_request.connection.send(b"".join(packed), len(packed))
        except RedisUnavailableError as error:
            self._log_failure(server_request.server, str(error))
            return RenewalReply()
        self._handle_error_replies(server_request.server, replies)
        kept = {
            number: bool(reply)
            for number, reply in zip(renew, replies, strict=False)
            if isinstance(reply, int)
        }
        seen = dict(zip(probe, replies[len(renew) :], strict=False))
        # A lease is "<token> <worker id>".
        taken = {
            number: reply.decode().partition(" ")[2]
            for number, reply in seen.items()
            if isinstance(reply, bytes)
        }
        free = [number for number, reply in seen.items() if reply is None]
        live, next_lapse_ms = scripts.read_heartbeat(replies[-1]) if heartbeat else (None, None)
        return RenewalReply(live, next_lapse_ms, kept, taken, free)

    def _ended(self, server: ServerConnections, _task: asyncio.Task[RenewalReply]) -> None:
        del self._under_way[server]

    def _replied_late(self, server_request: _ServerRequest, task: asyncio.Task[RenewalReply]) -> None:
        if not task.cancelled() and task.exception() is None:
            # The probed leases may have changed since, but the renewed ones were renewed.
            request = RenewalRequest(False, server_request.request.renew, ())
            self._on_late_reply(request, RenewalReply(kept=task.result().kept), server_request.sent_at)

    def _handle_error_replies(self, server: ServerConnections, replies: Sequence[Any]) -> None:
        error = next((str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)), "")
        if error:
            server.handle_error_reply(error)
            self._log_failure(server, f"redis replied: {error}")

    def _log_failure(self, server: ServerConnections, reason: str) -> None:
        if self._failure_lines.due(server.address, reason[:20]):  # what follows may differ every time
            _log.warning(
                "lease renewal failed",
                redis=server.address,
                reason=reason,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )


def _merged(replies: Sequence[RenewalReply]) -> RenewalReply:
    live, next_lapse_ms = None, None
    kept: dict[int, bool] = {}
    taken: dict[int, str] = {}
    free: list[int] = []
    for reply in replies:
        if reply.live is not None:
            live, next_lapse_ms = reply.live, reply.next_lapse_ms
        kept |= reply.kept
        taken |= reply.taken
        free += reply.free
    return RenewalReply(live, next_lapse_ms, kept, taken, free)
