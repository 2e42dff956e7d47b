"""The worker of `maskline dev`, whose place another one can take while everything goes on.

A reload is a deployment within one process: the new worker opens its resources and connects while the old one works;
the old one stops, and the new one takes each partition as soon as its handlers have ended. So whatever holds for a
deployment holds for a reload: no event is lost, none is handled by both, order and counts of attempts are kept.
"""

import asyncio
from typing import Final

from maskline.worker.node import WorkerNode

LEAVING_MAX: Final = 4
"""Workers that wait for slow handlers at once, each with its resources open. One more waits for the first to end."""


class WorkerSlot:
    """The worker that runs now, from when it has started."""

    def __init__(self, worker: WorkerNode) -> None:
        self.worker = worker
        self._lock = asyncio.Lock()
        """Held while a worker takes another one's place."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._stopped = False

    async def replace(self, worker: WorkerNode) -> None:
        """Have `worker`, which is open, take the place of the one that runs. Raises ConfigError if it cannot start:
        there is no worker then.
        """
        async with self._lock:
            while len(self._leaving) >= LEAVING_MAX:
                await asyncio.wait(self._leaving, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped:
                await worker.stop()
                return
            if self._watch is not None:
                self._watch.cancel()
            rest = await self.worker.hand_over()
            self._leaving.add(rest)
            rest.add_done_callback(self._left)
            self.worker = worker
            await worker.start()

    def _left(self, rest: asyncio.Task[None]) -> None:
        self._leaving.discard(rest)
        self.worker.take_free_partitions()

    async def failed(self) -> None:
        """Wait until a part of the worker that runs has failed, and log it; return only then."""
        while True:
            async with self._lock:
                self._watch = asyncio.create_task(self.worker.failed())
            try:
                await asyncio.wait({self._watch})
            finally:
                self._watch.cancel()
            if not self._watch.cancelled():
                return

    async def stop(self) -> None:
        """Stop the worker, and wait until those before it have stopped. If one is just being replaced, that ends
        first.
        """
        async with self._lock:
            self._stopped = True
        await self.worker.stop()
        if self._leaving:
            await asyncio.wait(self._leaving)
