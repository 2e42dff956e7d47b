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

    async def tried(self) -> None:
        """Wait, bounded, for the end of the first try. Raises ConfigError where waiting cannot help."""

    async def stop(self) -> None: ...


S = TypeVar("S", bound=ClusterPrimary)


class Cluster(Generic[S]):
    """`make(server)` makes what is kept for a server, None being the only one there is.

    `tasks`: keep the map. `on_change`: the map has changed.
    """

    def __init__(
        self, store: RedisEndpoint, keys: Keys, partitions: int, tasks: BackgroundTasks, make: Callable[[Server |
        None], S], on_change: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._keys = keys
        self._partitions = partitions
        self._tasks = tasks
        self._make = make
        self._on_change = on_change
        self._by_server: dict[Server, S] = {}
        self._only: S | None = None if store.is_cluster else make(None)
        self._slots: SlotMap | None = None
        self._of_partition: list[S | None] = [self._only] * partitions
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.trouble = "" if self._only is not None else "the cluster was not found yet"
        """Why the map is not known; empty where it is."""

    async def start(self) -> None:
        """Find the servers and start what is kept for each; where they are away, go on trying in the background.

        Raises ConfigError where waiting cannot help.
        """
        if self._only is not None:
            self._only.start()
            await self._only.tried()
            return
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                slots = await self._store.find()
            self._take(slots)
        except (RedisUnavailableError, TimeoutError) as error:
            self.trouble = str(error) or f"no node has answered within {FIND_TIMEOUT_S:g} s"
            _log.warning("cluster lookup failed", reason=self.trouble)
        finally:
            self._keeper = self._tasks.start("cluster map", self._keep)
        await asyncio.gather(*(shard.tried() for shard in self))

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(shard.stop() for shard in self), *self._leaving)

    def __iter__(self) -> Iterator[S]:
        """All servers', those that have no partition any more among them until they are stopped."""
        return iter((self._only,) if self._only is not None else tuple(self._by_server.values()))

    def of_partition(self, partition: int) -> S | None:
        """None while nobody is known to have it."""
        return self._of_partition[partition]

    def of_key(self, key: str) -> S | None:
        """Of a key that belongs to no partition."""
        if self._only is not None:
            return self._only
        server = self.server_of(key)
        return None if server is None else self._by_server.get(server)

    def server_of(self, key: str) -> Server | None:
        """The cluster's node that has a key; None while nobody knows, and where there is no cluster."""
        return None if self._slots is None else self._slots.server_of(key)

    def stale(self) -> None:
        """A server says that a key is not there, or cannot be reached: ask for the map again."""
        self._stale.set()

    # Inside

    async def _keep(self) -> None:
        while True:
            well = not self.trouble and all(shard.up for shard in self)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S if well else 2 * REFRESH_MIN_S):
                    await self._stale.wait()
            self._stale.clear()
            try:
                self._take(await self._store.find())
            except RedisUnavailableError as error:
                if str(error) != self.trouble:
                    _log.warning("cluster slots refresh failed", reason=str(error))
                self.trouble = str(error)
            except Exception:
                self._stale.set()  # whoever goes on with this asks at once
                raise
            await asyncio.sleep(REFRESH_MIN_S)

    def _take(self, slots: SlotMap | None) -> None:
        if slots is None:
            return
        self._slots = slots
        for server in slots.primaries:
            if server not in self._by_server:
                self._by_server[server] = self._make(server)
        gone = [server for server in self._by_server if server not in slots.primaries]
        leaving = [self._by_server.pop(server) for server in gone]
        owners = [slots.server_of(self._keys.callbacks(number)) for number in range(self._partitions)]
        before = self._of_partition
        self._of_partition = [None if owner is None else self._by_server[owner] for owner in owners]
        self.trouble = "" if slots.complete else "the cluster has slots that no node serves"
        if before != self._of_partition:
            _log.info("cluster slots loaded", primaries=[str(server) for server in slots.primaries])
            self._on_change()
        for shard in leaving:
            task = self._tasks.start("server that left", shard.stop)
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for shard in self._by_server.values():
            try:
                shard.start()
            except Exception as error:  # noqa: BLE001 - the others start all the same, and it again with the next map
                self._tasks.failed("cluster map", error)
