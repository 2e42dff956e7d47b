"""The servers that have the partitions, each with what a process keeps for it: connections, a publisher.

With one server, or behind Sentinels, that is one, for ever. With a cluster it is one for each primary, and which has
which partition changes: at a failover, or when a slot is moved. The map is asked for again when a node says that a key
is not there, while one cannot be reached, and now and then; until it is there, what cannot be sent waits where it is.

A new map counts at once: it is taken over and told of, servers that left are stopped, and those that came are started,
each by itself. No server, whatever it says, keeps the partitions of another waiting.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.slots import SlotMap
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys

REFRESH_S: Final = 10.0
"""The map is asked for at least so often: nothing tells of a new primary that has taken over slots of an old one."""
FIND_TIMEOUT_S: Final = 2.0
"""How long the start waits for the first map before it goes on without."""
REFRESH_MIN_S: Final = 0.25
"""And at most so often, while something is wrong."""

_log = get_logger("maskline.cluster")


class ClusterPrimary(Protocol):
    """What is kept for one server."""

    @property
    def up(self) -> bool:
        """Its server can be used."""

    def start(self) -> None:
        """Connect, and go on trying in the background until `stop`; nothing where it was started before."""

    async def wait_first_attempt(self) -> None:
        """Wait, bounded, for the end of the first try. Raises ConfigError where waiting cannot help."""

    async def stop(self) -> None: ...


PrimaryT = TypeVar("PrimaryT", bound=ClusterPrimary)


class Cluster(Generic[PrimaryT]):
    """`make_primary(server)` makes what is kept for a server, None being the only one there is.

    `tasks`: keep the map. `on_change`: the map has changed.
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
        """Why the map is not known; empty where it is."""

    async def start(self) -> None:
        """Find the servers and start what is kept for each; where they are away, go on trying in the background.

        Raises ConfigError where waiting cannot help.
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
        if self._refresh_task is not None:
            self._refresh_task.cancel()
            await asyncio.gather(self._refresh_task, return_exceptions=True)
        await asyncio.gather(*(primary.stop() for primary in self), *self._leaving)

    def __iter__(self) -> Iterator[PrimaryT]:
        """All servers', those that have no partition any more among them until they are stopped."""
        return iter((self._only,) if self._only is not None else tuple(self._by_server.values()))

    def of_partition(self, partition: int) -> PrimaryT | None:
        """None while nobody is known to have it."""
        return self._of_partition[partition]

    def of_key(self, key: str) -> PrimaryT | None:
        """Of a key that belongs to no partition."""
        if self._only is not None:
            return self._only
        server = self.server_of(key)
        return None if server is None else self._by_server.get(server)

    def server_of(self, key: str) -> Server | None:
        """The cluster's node that has a key; None while nobody knows, and where there is no cluster."""
        return None if self._slots is None else self._slots.server_of(key)

    def request_refresh(self) -> None:
        """A server says that a key is not there, or cannot be reached: ask for the map again."""
        self._refresh_due.set()

    # Inside

    async def _refresh_loop(self) -> None:
        while True:
            well = not self.error and all(primary.up for primary in self)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S if well else 2 * REFRESH_MIN_S):
                    await self._refresh_due.wait()
            self._refresh_due.clear()
            try:
                self._apply(await self._endpoint.find_slots())
            except RedisUnavailableError as error:
                if str(error) != self.error:
                    _log.warning("cluster slots refresh failed", reason=str(error))
                self.error = str(error)
            except Exception:
                self._refresh_due.set()  # whoever goes on with this asks at once
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
