"""Retry queues on a server as operations of commits make them, and a model of them in plain Python."""

import uuid
from collections.abc import Iterable
from typing import Any

from servers import RedisServer

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.keys import Keys, encode_handler
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    GiveUpWaiting,
    Park,
    Pop,
    RetryOp,
    Unpark,
    Untake,
)

PARTITION = 3
TTL_MS = 60_000
LIFE_S = 3_600
CLOSED_LIFE_S = 100


class QueueStore:
    """One partition on a server, and its owner, who commits operations."""

    def __init__(self, connection: Any, client: Any) -> None:
        self.connection, self.client = connection, client
        self.keys = Keys(f"test-{uuid.uuid4().hex[:12]}", "workers")
        self.value = ""
        self.number = 0

    async def run(self, packed: bytes) -> Any:
        (reply,) = await self.connection.send(packed, 1)
        return reply

    async def own(self, worker: str = "me") -> None:
        packed = scripts.acquire(self.keys, PARTITION, worker, TTL_MS)
        acquired = scripts.read_acquired(await self.run(packed))
        assert acquired is not None
        self.value, self.number = scripts.lease_value(acquired.token, worker), 0

    async def own_anew(self, worker: str = "me") -> None:
        """The lease lapses and a worker takes it."""
        self.client.delete(self.keys.lease(PARTITION))
        await self.own(worker)

    def next_commit(self, *ops: RetryOp, **what: Any) -> Commit:
        self.number += 1
        none = {"waiting": (), "done": (), "dead": (), "states": {}, "cursor": "0-0", "moved": False}
        return Commit(
            number=self.number,
            entries_read=-1,
            life_s=LIFE_S,
            closed_life_s=CLOSED_LIFE_S,
            retry_ops=ops,
            **none | what,
        )

    async def send(self, commit: Commit, value: str = "") -> Any:
        return await self.run(scripts.commit(self.keys, PARTITION, value or self.value, commit))

    async def commit(self, *ops: RetryOp, **what: Any) -> None:
        assert await self.send(self.next_commit(*ops, **what)) == scripts.COMMITTED

    async def take(self, handler: str = "h", count: int = 10, items: int = 3, **what: Any) -> scripts.Taken:
        taken = await self.try_to_take(handler, count=count, items=items, **what)
        assert taken is not None
        return taken

    async def try_to_take(self, handler: str = "h", *, value: str = "", **what: Any) -> scripts.Taken | None:
        what = {"commits": (self.number, self.number)} | what
        packed = scripts.take_due(self.keys, PARTITION, value or self.value, handler, **what)
        return scripts.read_taken(await self.run(packed))

    async def index(self) -> dict[str, scripts.HandlerBacklog]:
        reply = await self.run(scripts.retry_index(self.keys, PARTITION))
        return {backlog.handler: backlog for backlog in scripts.read_retry_index(reply)}

    # What is there

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    def queue(self, handler: str, session: str) -> list[bytes]:
        return list(self.client.lrange(self.keys.retry_queue(PARTITION, handler, session), 0, -1))

    def due(self, handler: str = "h") -> dict[str, float]:
        return self._scores(self.keys.retry_due(PARTITION, handler))

    def parked(self, handler: str = "h") -> dict[str, float]:
        return self._scores(self.keys.retry_parked(PARTITION, handler))

    def since(self, handler: str = "h") -> dict[str, float]:
        return self._scores(self.keys.retry_since(PARTITION, handler))

    def counts(self) -> dict[str, int]:
        found = self.client.hgetall(self.keys.retry_counts(PARTITION))
        return {field.decode(): int(value) for field, value in found.items()}

    def taken(self) -> dict[str, str]:
        found = self.client.hgetall(self.keys.retry_taken(PARTITION))
        return {field.decode(): value.decode() for field, value in found.items()}

    def letters(self) -> list[str]:
        return [letter_id.decode() for letter_id, _ in self.client.xrange(self.keys.dead(PARTITION))]

    def dump(self) -> dict[bytes, Any]:
        """All that there is under the namespace, byte for byte."""
        keys = sorted(self.client.scan_iter(match=f"*{self.keys.namespace}*", count=1000))
        return {key: self.client.dump(key) for key in keys}

    def _scores(self, key: str) -> dict[str, float]:
        return {member.decode(): score for member, score in self.client.zrange(key, 0, -1, withscores=True)}


async def open_connection(url: str) -> PipelinedConnection:
    connection = await RedisEndpoint(Settings(redis_url=url)).connect("test")
    await scripts.load_scripts(connection)
    return connection


async def open_store(server: RedisServer, client: Any) -> QueueStore:
    """A partition of its own on a server, owned by `me`. Close its connection in the end."""
    store = QueueStore(await open_connection(server.url), client)
    await store.own()
    return store


Place = tuple[str, str]
"""A handler and a session."""


class QueueModel:
    """Retry queues as lists and sets."""

    def __init__(self) -> None:
        self.queues: dict[Place, list[bytes]] = {}
        self.due_in_ms: dict[Place, int] = {}
        """Queues that are due, and in how many ms they were to be when that was said last."""
        self.parked: set[Place] = set()
        self.taken: dict[Place, int] = {}
        self.scheduled: set[Place] = set()
        """Of `due_in_ms`: said by the last commit."""
        self.parked_now: set[Place] = set()
        """Of `parked`: by the last commit."""
        self.begun: set[Place] = set()
        """Queues that came to be in the last commit."""

    def begin_commit(self) -> None:
        self.scheduled, self.parked_now, self.begun = set(), set(), set()

    def sessions(self, handler: str, places: Iterable[Place]) -> set[str]:
        return {session for of, session in places if of == handler}

    def apply(self, op: RetryOp) -> None:
        assert isinstance(op, Append | Again | Pop | Park | Unpark | Untake | GiveUpWaiting)
        place = op.handler, op.session
        queue = self.queues.setdefault(place, [])
        was_there = place in self.due_in_ms or place in self.parked
        match op:
            case Append():
                queue.append(op.item)
                if place not in self.due_in_ms:
                    self._due(place, op.delay_ms)
            case Again():
                queue[:1] = [op.item]
                self._due(place, op.delay_ms)
            case Pop():
                del queue[:1]
                self._due(place, 0)
            case Park():
                del queue[:1]
                self.due_in_ms.pop(place, None)
                if place not in self.parked:
                    self.parked_now.add(place)
                self.parked.add(place)
            case Unpark():
                self.parked.discard(place)
                queue[:0] = [op.item] if op.item else []
                self._due(place, 0)
            case Untake():
                self._due(place, 0)
            case GiveUpWaiting():
                self.parked.discard(place)
                del queue[: op.events]
                self._due(place, 0)
        if isinstance(op, Again | Pop | Park | Untake):
            self.taken.pop(place, None)
        if not was_there:
            self.begun.add(place)

    def _due(self, place: Place, delay_ms: int) -> None:
        if place in self.parked:
            return
        if self.queues[place]:
            self.due_in_ms[place] = delay_ms
            self.scheduled.add(place)
        else:
            self.due_in_ms.pop(place, None)

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for place in {*self.due_in_ms, *self.parked}:
            handler, waiting = encode_handler(place[0]), len(self.queues[place])
            for what, count in (("waiting", waiting), ("parked", waiting if place in self.parked else 0)):
                field = f"{what} {handler}"
                counts[field] = counts.get(field, 0) + count
        return counts
