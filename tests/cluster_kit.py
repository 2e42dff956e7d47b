"""A real Redis Cluster for the tests, formed and driven through redis-py.

Its processes listen on free ports, with their data in folders below `directory`, and end with `stop()`. Nothing here
waits for a number of seconds: each step waits for what it has brought about, on every server that lives.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.retry import Retry
from servers import SETTLE_S, RedisServer, free_port, plain_reply, wait_until

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 1_000
"""A primary that is silent for so long is failed over: short, so that a test is."""
MOVE_KEYS: Final = 10
"""Keys of a slot that move in one step."""


class KnownNode(NamedTuple):
    """A node of a cluster as another one sees it."""

    node_id: str
    port: int
    primary: bool
    failed: bool
    replicates: str
    slots: tuple[range, ...]


class ClusterNode(RedisServer):
    """One server of a cluster; `start` after `kill` comes back with the same data, port and place in the cluster."""

    def __init__(self, directory: Path, *, binary: str | None = None, options: tuple[str, ...] = ()) -> None:
        super().__init__(directory, binary=binary)
        self.options = (
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            str(free_port()),
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            str(NODE_TIMEOUT_MS),
            "--cluster-replica-validity-factor",
            "0",
            "--cluster-allow-replica-migration",
            "no",
            "--repl-ping-replica-period",
            "1",
            "--repl-diskless-sync-delay",
            "0",
            *options,
        )
        self.node_id = ""

    @property
    def alive(self) -> bool:
        return self.process is not None

    def client(self) -> redis.Redis:
        """Of this server alone: it does not follow redirections, and does not try again."""
        return redis.Redis(port=self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def cluster(self, *command: Any) -> Any:
        """CLUSTER …, its reply as text or as it came."""
        reply = plain_reply(self.port, "CLUSTER", *command)
        return reply.decode() if isinstance(reply, bytes) else reply

    def known(self) -> list[KnownNode]:
        """The cluster as this node sees it."""
        return [_known(line) for line in self.cluster("NODES").splitlines() if line]

    def info(self, section: str) -> dict[str, Any]:
        return dict(self.ask("INFO", section))

    @property
    def up(self) -> bool:
        return "cluster_state:ok" in self.cluster("INFO")


class ClusterServers:
    """A cluster of real servers: the slots spread evenly over the primaries, the replicas dealt out in turn."""

    def __init__(
        self,
        directory: Path,
        primaries: int = 3,
        replicas: int = 3,
        binary: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.nodes = [
            ClusterNode(directory / f"node-{number}", binary=binary, options=options)
            for number in range(primaries + replicas)
        ]
        self._primaries = primaries

    # Start and stop

    def start(self) -> "ClusterServers":
        """Start and join everything; returns when every node says ok and every replica is in step."""
        try:
            for node in self.nodes:
                node.start()
                node.node_id = node.cluster("MYID")
            self._join()
            self.until_settled()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def _join(self) -> None:
        first, *others = self.nodes
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for number, node in enumerate(primaries):
            node.cluster("SET-CONFIG-EPOCH", number + 1)
            share = range(number * SLOTS // len(primaries), (number + 1) * SLOTS // len(primaries))
            node.cluster("ADDSLOTSRANGE", share.start, share.stop - 1)
        for node in others:
            bus_port = node.options[node.options.index("--cluster-port") + 1]
            first.cluster("MEET", "127.0.0.1", node.port, bus_port)
        wait_until(
            lambda: all(len(node.known()) == len(self.nodes) for node in self.nodes),
            within_s=SETTLE_S,
            what="the nodes to meet",
        )
        for number, node in enumerate(replicas):
            node.cluster("REPLICATE", primaries[number % len(primaries)].node_id)

    # What there is

    @property
    def url(self) -> str:
        """All nodes, the replicas too, as one MASKLINE_REDIS_URL."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def alive(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.alive]

    def client(self) -> RedisCluster:
        """A client that follows the slots, for checks; close it."""
        node = self.alive[0]
        return RedisCluster(host="127.0.0.1", port=node.port, socket_timeout=10)

    def primaries(self) -> list[ClusterNode]:
        """The nodes that own slots, as the living agree; AssertionError while they do not."""
        owners = {frozenset(_owners(node)) for node in self.alive}
        assert len(owners) == 1, "the nodes do not agree on who owns the slots"
        (agreed,) = owners
        return [node for node in self.nodes if node.node_id in agreed]

    def primary_of(self, key: str) -> ClusterNode:
        return self.owner_of(key_slot(key.encode()))

    def owner_of(self, slot: int) -> ClusterNode:
        """Who owns the slot, as all the living agree; waits until they do."""

        def agreed() -> ClusterNode | None:
            seen = {
                one.node_id
                for node in self.alive
                for one in node.known()
                if one.primary and any(slot in part for part in one.slots)
            }
            return self._node(seen.pop()) if len(seen) == 1 else None

        return wait_until(agreed, within_s=SETTLE_S, what="the nodes to agree on a slot")  # type: ignore[no-any-return]

    def replicas_of(self, primary: ClusterNode) -> list[ClusterNode]:
        """The living replicas of a primary, as it or, if it is dead, the others see it."""
        witness = primary if primary.alive else self.alive[0]
        ids = {one.node_id for one in witness.known() if one.replicates == primary.node_id and not one.failed}
        return [node for node in self.alive if node.node_id in ids]

    def settled(self) -> bool:
        """Every living node says ok, all of them see the same roles and slots, and every replica is in step."""
        nodes = self.alive
        return (
            all(node.up for node in nodes)
            and len({self._view(node) for node in nodes}) == 1
            and all(_in_step(node) for node in nodes)
        )

    def until_settled(self) -> None:
        wait_until(self.settled, within_s=SETTLE_S, what="the cluster to settle")

    def _view(self, node: ClusterNode) -> frozenset[KnownNode]:
        """What a node sees of the living."""
        alive = {one.node_id for one in self.alive}
        return frozenset(one for one in node.known() if one.node_id in alive)

    def _node(self, node_id: str) -> ClusterNode:
        return next(node for node in self.nodes if node.node_id == node_id)

    # What goes wrong

    def kill(self, node: ClusterNode) -> None:
        """Kill -9."""
        node.kill()

    def restart(self, node: ClusterNode) -> None:
        """Start a killed node again (or stop and start a living one), and wait until all is settled."""
        node.kill(signal.SIGTERM)
        node.start()
        self.until_settled()

    def failover(self, primary: ClusterNode | None = None, *, graceful: bool) -> ClusterNode:
        """Have a replica take a primary's place, by CLUSTER FAILOVER or by kill -9 of the primary; the new primary.

        Without `primary` it is the one of the first slot. What was killed stays down: see `restart`.
        """
        primary = primary or self.owner_of(0)
        replicas = self.replicas_of(primary)
        assert replicas, "this primary has no replica to take its place"
        if graceful:
            replicas[0].cluster("FAILOVER")
        else:
            primary.kill()

        def promoted() -> ClusterNode | None:
            return next((node for node in replicas if node.info("replication")["role"] == "master"), None)

        heir: ClusterNode = wait_until(promoted, within_s=SETTLE_S, what="a replica to be promoted")
        wait_until(
            lambda: all(primary.node_id not in _owners(node) for node in self.alive) and self.settled(),
            within_s=SETTLE_S,
            what="all to know of the new primary",
        )
        return heir

    def move_slot(
        self,
        slot: int,
        target: ClusterNode,
        *,
        keys_a_step: int = MOVE_KEYS,
        between: Callable[[int], None] = lambda _moved: None,
    ) -> int:
        """Move a slot with all its keys to another primary, as resharding does, while others use it; keys moved.

        Until the end clients are told ASK for the keys that have gone and TRYAGAIN for commands on both sides.
        `between` is called after each step with the number of keys moved so far, while the slot is in two places.
        """
        source = self.owner_of(slot)
        assert target is not source, "the slot is there already"
        target.cluster("SETSLOT", slot, "IMPORTING", source.node_id)
        source.cluster("SETSLOT", slot, "MIGRATING", target.node_id)
        moved = 0
        between(moved)
        while keys := source.cluster("GETKEYSINSLOT", slot, keys_a_step):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
            moved += len(keys)
            between(moved)
        # The target first: it must know that the slot is its own before the source says so.
        for node in (target, source, *(one for one in self.primaries() if one not in (target, source))):
            node.cluster("SETSLOT", slot, "NODE", target.node_id)
        assert self.owner_of(slot) is target
        return moved


def slot_of(key: str) -> int:
    return int(key_slot(key.encode()))


def _known(line: str) -> KnownNode:
    """A line of CLUSTER NODES: id, ip:port@bus, flags, primary, ping, pong, epoch, link, slots …"""
    node_id, address, flags, replicates, _, _, _, _, *slots = line.split()
    spans = [span.partition("-") for span in slots if not span.startswith("[")]
    return KnownNode(
        node_id,
        int(address.partition("@")[0].rpartition(":")[2]),
        "master" in flags,
        "fail" in flags.split(","),
        "" if replicates == "-" else replicates,
        tuple(range(int(first), int(last or first) + 1) for first, _, last in spans),
    )


def _in_step(node: ClusterNode) -> bool:
    replication = node.info("replication")
    return replication["role"] == "master" or replication["master_link_status"] == "up"


def _owners(node: ClusterNode) -> Iterator[str]:
    return (one.node_id for one in node.known() if one.primary and one.slots)
