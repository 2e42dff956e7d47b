"""A group with workers that are alive as far as Redis knows, and retry queues that a worker has written."""

import asyncio
from collections.abc import Mapping, Sequence

from console_kit import settings_for

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.handler_control import Control, HandlerReport, encode_reports, read_control
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.retry_ops import RetryOp


class Group:
    """The group `workers` of a namespace, as its workers would leave it."""

    def __init__(self, server, namespace: str) -> None:
        self.keys = Keys(namespace, "workers")
        self.client = server.client()
        self._endpoint = RedisEndpoint(settings_for(server, namespace))

    def now_ms(self) -> int:
        """The server's time."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000

    def live(self, worker: str, reports: Mapping[str, HandlerReport]) -> None:
        """A worker with a fresh heartbeat, and these handlers."""
        self.client.zadd(self.keys.workers, {worker: self.now_ms()})
        self.ended(worker, reports)

    def ended(self, worker: str, reports: Mapping[str, HandlerReport]) -> None:
        """A worker that has told its handlers and is not alive any more."""
        self.client.hset(self.keys.handlers, worker, encode_reports(reports))

    def control(self) -> Control:
        """The pauses, as workers read them."""
        fields = self.client.hgetall(self.keys.control)
        return read_control({name.decode(): value for name, value in fields.items()})

    def commit(self, ops: Mapping[int, Sequence[RetryOp]]) -> None:
        """Change the retry queues of partitions, as the first commit of their owner."""

        async def commit_all() -> None:
            connection = await self._endpoint.connect("test")
            await scripts.load_scripts(connection)
            for number, its_ops in ops.items():
                (reply,) = await connection.send(scripts.acquire(self.keys, number, "w1", 60_000), 1)
                lease = scripts.read_acquired(reply)
                value = scripts.lease_value(lease.token, "w1")
                what = Commit(1, "0-0", 0, (), (), (), {}, 60, 60, moved=False, retry_ops=its_ops)
                (reply,) = await connection.send(scripts.commit(self.keys, number, value, what), 1)
                assert reply == scripts.COMMITTED
            connection.close()

        asyncio.run(commit_all())
