"""Every Redis key, in one place.

All keys of a partition share the hash tag `{namespace:partition}`, so that one Lua call may touch them on
Redis Cluster, where the partitions then spread over the nodes.

| key | type | holds |
| --- | --- | --- |
| `{ns:p}:callbacks` | stream | raw callbacks of partition p, consumer groups at their cursors |
| `{ns:p}:dead` | stream | dead letters of partition p, of all groups |
| `{ns:p}:lease:<group>` | string | who owns p for the group, `<fencing token> <worker id>`, expires with the lease |
| `{ns:p}:fence:<group>` | hash | the last `token`, its `owner` and `commit`; `clean`: the last token given back |
| `{ns:p}:marks:<group>` | hash | `<entry id> <handler>`: crashes of a handler that may bring its worker down; expires |
| `{ns:p}:session:<group>:<session>` | string | ordering state of a session, expires |
| `{ns:fsync-i}:callbacks` | stream | nothing: written to see whether the server fsyncs before it confirms |
| `ns:layout` | hash | what all nodes must agree on: partitions, layout version, the key of number tokens |
| `ns:workers:<group>` | sorted set | live workers by their last heartbeat, Redis time in ms |
"""

from typing import NamedTuple
from zlib import crc32


def partition_of(session_uuid: str, partitions: int) -> int:
    """The partition of a session, 0 … partitions - 1: the same on every node and every release."""
    return crc32(session_uuid.encode()) % partitions


def probe_stream(namespace: str, number: int) -> str:
    """A stream for trying out what a server does; with another number it lies on another one of a cluster.

    Whoever may write callbacks may write it.
    """
    return f"{{{namespace}:fsync-{number}}}:callbacks"


class PartitionKeys(NamedTuple):
    """The keys of one partition."""

    callbacks: str
    dead: str
    lease: str
    fence: str
    marks: str
    session: str
    """Followed by the session's UUID."""


class Keys:
    """The keys of one namespace and, for what is kept per group, one consumer group."""

    __slots__ = ("_partitions", "group", "layout", "namespace", "workers")

    def __init__(self, namespace: str, group: str = "") -> None:
        self.namespace = namespace
        self.group = group
        self.layout = f"{namespace}:layout"
        self.workers = f"{namespace}:workers:{group}"
        self._partitions: dict[int, PartitionKeys] = {}

    def of(self, partition: int) -> PartitionKeys:
        """The keys of a partition, made once."""
        keys = self._partitions.get(partition)
        if keys is None:
            tag, group = f"{{{self.namespace}:{partition}}}", self.group
            keys = self._partitions[partition] = PartitionKeys(
                f"{tag}:callbacks", f"{tag}:dead", f"{tag}:lease:{group}", f"{tag}:fence:{group}",
                f"{tag}:marks:{group}", f"{tag}:session:{group}:",
            )  # fmt: skip
        return keys

    def callbacks(self, partition: int) -> str:
        return self.of(partition).callbacks

    def dead(self, partition: int) -> str:
        return self.of(partition).dead

    def lease(self, partition: int) -> str:
        return self.of(partition).lease

    def fence(self, partition: int) -> str:
        return self.of(partition).fence

    def marks(self, partition: int) -> str:
        return self.of(partition).marks

    def session(self, partition: int, session_uuid: str) -> str:
        return self.of(partition).session + session_uuid
