"""The primaries that have the partitions, each with what a process keeps for it: connections, a publisher.

With one server, or behind Sentinels, there is always one. With a cluster there is one for each primary, and which has
which partition changes: at a failover, or when a slot is moved. The slot map is requested again when a node says that a
key is elsewhere, while a node cannot be reached, and regularly. Until it is known, what cannot be sent waits.

A new map counts at once: it is applied and announced, primaries that left are stopped, and new ones are started, each
by itself. No primary delays the partitions of another.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.slots import SlotMap
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys

REFRESH_S: Final = 10.0
"""The longest time between two requests for the map: nothing announces a primary that takes over another's slots."""
FIND_TIMEOUT_S: Final = 2.0
"""How long the start waits for the first map before it goes on without."""
REFRESH_MIN_S: Final = 0.25
"""The shortest time between two requests, while something is wrong."""

_log = get_logger("maskline.cluster")


class ClusterPrimary(Protocol):
    """What a process keeps for one primary."""

    @property
    def up(self) -> bool:
        """Whether its server can be used."""

    def start(self) -> None:
        """Connect, and go on trying in the background until `stop`. A second call does nothing."""

    async def wait_first_attempt(self) -> None:
        """Wait, bounded, for the end of the first attempt. Raises ConfigError if waiting longer cannot help."""

    async def stop(self) -> None:
        """Close the connections, and try no more."""


PrimaryT = TypeVar("PrimaryT", bound=ClusterPrimary)


class Cluster(Generic[PrimaryT]):
    """All primaries, and which of them has which partition.

    `make_primary(server)`: makes what is kept for a primary; `server` is None for the only one there is. `tasks`: run
    the refresh of the map. `on_change`: called when partitions have moved.
    """

    def __init__(
        self,
        endpoint: RedisEndpoint,
        keys: Keys,
        partitions: int,
        tasks: BackgroundTasks,
        make_primary: Callable[[Server | None], PrimaryT],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._partitions = partitions
        self._tasks = tasks
        self._make_primary = make_primary
        self._on_change = on_change
        self._by_server: dict[Server, PrimaryT] = {}
        self._only: PrimaryT | None = None if endpoint.is_cluster else make_primary(None)
        self._slots: SlotMap | None = None
        self._of_partition: list[PrimaryT | None] = [self._only] * partitions
        self._refresh_due = asyncio.Event()
        self._refresh_task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.error = "" if self._only is not None else "the cluster was not found yet"
        """Why the map is not known or not complete; empty if it is."""

    async def start(self) -> None:
        """Find the primaries and start what is kept for each; if they are away, go on trying in the background.

        Raises ConfigError if waiting cannot help.
        """
        if self._only is not None:
            self._only.start()
            await self._only.wait_first_attempt()
            return
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                slots = await self._endpoint.find_slots()
            self._apply(slots)
        except (RedisUnavailableError, TimeoutError) as error:
            self.error = str(error) or f"no node has answered within {FIND_TIMEOUT_S:g} s"
            _log.warning("cluster lookup failed", reason=self.error)
        finally:
            self._refresh_task = self._tasks.start("cluster map", self._refresh_loop)
        await asyncio.gather(*(primary.wait_first_attempt() for primary in self))

    async def stop(self) -> None:
        """Stop the refresh and everything that is kept for a primary."""
        if self._refresh_task is not None:
            self._refresh_task.cancel()
            await asyncio.gather(self._refresh_task, return_exceptions=True)
        await asyncio.gather(*(primary.stop() for primary in self), *self._leaving)

    def __iter__(self) -> Iterator[PrimaryT]:
        """What is kept for each primary."""
        return iter((self._only,) if self._only is not None else tuple(self._by_server.values()))

    def of_partition(self, partition: int) -> PrimaryT | None:
        """What is kept for the primary that has the partition; None while that is not known."""
        return self._of_partition[partition]

    @property
    def placement(self) -> Sequence[PrimaryT | None]:
        """What `of_partition` returns for each partition, by number; another object whenever any of it has changed."""
        return self._of_partition

    def of_key(self, key: str) -> PrimaryT | None:
        """What is kept for the primary that has a key of no partition; None while that is not known."""
        if self._only is not None:
            return self._only
        server = self.server_of(key)
        return None if server is None else self._by_server.get(server)

    def server_of(self, key: str) -> Server | None:
        """The cluster's node that has a key; None while that is not known, and where there is no cluster."""
        return None if self._slots is None else self._slots.server_of(key)

    def request_refresh(self) -> None:
        """Ask for the map again soon: a server says that a key is elsewhere, or cannot be reached."""
        self._refresh_due.set()

    # Inside

    async def _refresh_loop(self) -> None:
        while True:
            healthy = not self.error and all(primary.up for primary in self)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S if healthy else 2 * REFRESH_MIN_S):
                    await self._refresh_due.wait()
            self._refresh_due.clear()
            try:
                self._apply(await self._endpoint.find_slots())
            except RedisUnavailableError as error:
                if str(error) != self.error:
                    _log.warning("cluster slots refresh failed", reason=str(error))
                self.error = str(error)
            except Exception:
                self._refresh_due.set()  # the restarted task asks at once
                raise
            await asyncio.sleep(REFRESH_MIN_S)

    def _apply(self, slots: SlotMap | None) -> None:
        if slots is None:
            return
        self._slots = slots
        for server in slots.primaries:
            if server not in self._by_server:
                self._by_server[server] = self._make_primary(server)
        gone = [server for server in self._by_server if server not in slots.primaries]
        leaving = [self._by_server.pop(server) for server in gone]
        owners = [slots.server_of(self._keys.callbacks(number)) for number in range(self._partitions)]
        before = self._of_partition
        self._of_partition = [None if owner is None else self._by_server[owner] for owner in owners]
        self.error = "" if slots.complete else "the cluster has slots that no node serves"
        if before != self._of_partition:
            _log.info("cluster slots loaded", primaries=[str(server) for server in slots.primaries])
            self._on_change()
        for primary in leaving:
            task = self._tasks.start("server that left", primary.stop)
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for primary in self._by_server.values():
            try:
                primary.start()
            except Exception as error:  # noqa: BLE001 - the others start all the same, and it again with the next map
                self._tasks.failed("cluster map", error)
