"""Carries a trip (`worker.leases.planner`) to the servers that hold the leases, and brings the answers back.

With a cluster the leases lie on several servers. All are asked at once; one that is away or slow holds up none of the
others: what it says later still counts, from when it was asked.
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


class _Part(NamedTuple):
    """What one server is asked."""

    connection: ServerConnections
    leases: PipelinedConnection
    trip: RenewalRequest
    sent_at: float


class LeaseRenewer:
    """`on_late(trip, answers, sent_at)`: a server has answered after its round was over."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, worker_id: str, lease_ttl_ms: int,
        on_late: Callable[[RenewalRequest, RenewalReply, float], None],
    ) -> None:  # fmt: skip
        self._connections = connections
        self._keys = keys
        self._worker_id = worker_id
        self._lease_ttl_ms = lease_ttl_ms
        self._on_late = on_late
        self._under_way: dict[ServerConnections, asyncio.Task[RenewalReply]] = {}
        """A server that has not answered is not asked again until it has, or its connection is cut."""
        self._complaint_lines = LogRateLimit()

    async def ask(self, trip: RenewalRequest, timeout_s: float) -> RenewalReply:
        """What the servers answer within the time."""
        asked: dict[asyncio.Task[RenewalReply], _Part] = {}
        for part in self._parts(trip):
            task = asyncio.create_task(self._ask(part))
            asked[task] = part
            self._under_way[part.connection] = task
            task.add_done_callback(partial(self._answered, part.connection))
        if not asked:
            return RenewalReply()
        done, late = await asyncio.wait(asked, timeout=timeout_s)
        for task in late:
            task.add_done_callback(partial(self._late, asked[task]))
        return _merged([task.result() for task in done])

    # Inside

    def _parts(self, trip: RenewalRequest) -> Iterator[_Part]:
        of, home = self._connections.of_partition, self._connections.heartbeat_server
        for connection in self._connections:
            if connection.leases is None or not connection.up or connection in self._under_way:
                continue
            renew = {number: token for number, token in trip.renew.items() if of(number) is connection}
            look = [number for number in trip.look if of(number) is connection]
            heartbeat = trip.heartbeat and connection is home
            if renew or look or heartbeat:
                yield _Part(
                    connection, connection.leases, RenewalRequest(heartbeat, renew, look), lease_clock()
                )

    async def _ask(self, part: _Part) -> RenewalReply:
        keys, life_ms = self._keys, self._lease_ttl_ms
        heartbeat, renew, look = part.trip
        packed = [
            scripts.renew(keys, number, scripts.lease_value(token, self._worker_id), life_ms)
            for number, token in renew.items()
        ]
        packed += [pack("GET", keys.lease(number)) for number in look]
        if heartbeat:
            packed.append(scripts.heartbeat(keys, self._worker_id, life_ms))
        try:
            replies = await part.leases.send(b"".join(packed), len(packed))
        except RedisUnavailableError as error:
            self._complain(part.connection, str(error))
            return RenewalReply()
        self._note_refusals(part.connection, replies)
        kept = {
            number: bool(reply)
            for number, reply in zip(renew, replies, strict=False)
            if isinstance(reply, int)
        }
        seen = dict(zip(look, replies[len(renew) :], strict=False))
        # A lease is "<token> <worker id>".
        taken = {
            number: reply.decode().partition(" ")[2]
            for number, reply in seen.items()
            if isinstance(reply, bytes)
        }
        free = [number for number, reply in seen.items() if reply is None]
        live, next_lapse_ms = scripts.read_heartbeat(replies[-1]) if heartbeat else (None, None)
        return RenewalReply(live, next_lapse_ms, kept, taken, free)

    def _answered(self, connection: ServerConnections, _task: asyncio.Task[RenewalReply]) -> None:
        del self._under_way[connection]

    def _late(self, part: _Part, task: asyncio.Task[RenewalReply]) -> None:
        if not task.cancelled() and task.exception() is None:
            # What was looked at may have changed since; what was renewed was renewed.
            trip, answers = RenewalRequest(False, part.trip.renew, ()), RenewalReply(kept=task.result().kept)
            self._on_late(trip, answers, part.sent_at)

    def _note_refusals(self, connection: ServerConnections, replies: Sequence[Any]) -> None:
        refusal = next((str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)), "")
        if refusal:
            connection.note_error_reply(refusal)
            self._complain(connection, f"Redis refuses: {refusal}")

    def _complain(self, connection: ServerConnections, reason: str) -> None:
        if self._complaint_lines.due(connection.address, reason[:20]):  # what follows may differ every time
            _log.warning(
                "leases could not be renewed", redis=connection.address, reason=reason,
                repeats_of_all=self._complaint_lines.take_silent(),
            )  # fmt: skip


def _merged(answers: Sequence[RenewalReply]) -> RenewalReply:
    live, next_lapse_ms = None, None
    kept: dict[int, bool] = {}
    taken: dict[int, str] = {}
    free: list[int] = []
    for answer in answers:
        if answer.live is not None:
            live, next_lapse_ms = answer.live, answer.next_lapse_ms
        kept |= answer.kept
        taken |= answer.taken
        free += answer.free
    return RenewalReply(live, next_lapse_ms, kept, taken, free)
