"""Every Redis key is made here.

All keys of a partition share the hash tag `{namespace:partition}`, so that one Lua script may touch all of them on
Redis Cluster, and the partitions spread over its nodes.

| key | type | holds |
| --- | --- | --- |
| `{ns:p}:callbacks` | stream | raw callbacks of partition p, consumer groups at their cursors |
| `{ns:p}:dead` | stream | dead letters of partition p, of all groups |
| `{ns:p}:lease:<group>` | string | who owns p for the group, `<fencing token> <worker id>`, expires with the lease |
| `{ns:p}:fence:<group>` | hash | the last `token`, its `owner` and `commit`; `clean`: the last token given back |
| `{ns:p}:marks:<group>` | hash | `<entry id> <handler>`: crashes of a handler that may bring its worker down; expires |
| `{ns:p}:session:<group>:<session>` | string | ordering state of a session, expires |
| `{ns:fsync-i}:callbacks` | stream | nothing: written to test whether the server fsyncs before it confirms |
| `ns:layout` | hash | what all nodes must agree on: partitions, layout version, the key of number tokens |
| `ns:workers:<group>` | sorted set | live workers by their last heartbeat, Redis time in ms |
"""

from typing import NamedTuple
from zlib import crc32


def partition_of(session_uuid: str, partitions: int) -> int:
    """The partition of a session, 0 … partitions - 1: the CRC-32 of the SessionUUID modulo `partitions`.

    It is the same on every node and in every release.
    """
    return crc32(session_uuid.encode()) % partitions


def probe_stream(namespace: str, number: int) -> str:
    """The key of a stream for tests of a server; with another `number` it may be on another node of a cluster.

    An ACL that permits writing callbacks permits writing it.
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
    """Prefix of a session's key; the SessionUUID follows."""


class Keys:
    """The keys of one namespace, and of one consumer group where there is a key for each group."""

    __slots__ = ("_partitions", "group", "layout", "namespace", "workers")

    def __init__(self, namespace: str, group: str = "") -> None:
        self.namespace = namespace
        self.group = group
        self.layout = f"{namespace}:layout"
        self.workers = f"{namespace}:workers:{group}"
        self._partitions: dict[int, PartitionKeys] = {}

    def of(self, partition: int) -> PartitionKeys:
        """All keys of a partition, built once."""
        keys = self._partitions.get(partition)
        if keys is None:
            tag, group = f"{{{self.namespace}:{partition}}}", self.group
            keys = self._partitions[partition] = PartitionKeys(
                callbacks=f"{tag}:callbacks",
                dead=f"{tag}:dead",
                lease=f"{tag}:lease:{group}",
                fence=f"{tag}:fence:{group}",
                marks=f"{tag}:marks:{group}",
                session=f"{tag}:session:{group}:",
            )
        return keys

    def callbacks(self, partition: int) -> str:
        """The stream of a partition's callbacks."""
        return self.of(partition).callbacks

    def dead(self, partition: int) -> str:
        """The stream of a partition's dead letters."""
        return self.of(partition).dead

    def lease(self, partition: int) -> str:
        """The lease of a partition."""
        return self.of(partition).lease

    def fence(self, partition: int) -> str:
        """The last fencing token of a partition."""
        return self.of(partition).fence

    def marks(self, partition: int) -> str:
        """The crash marks of a partition."""
        return self.of(partition).marks

    def session(self, partition: int, session_uuid: str) -> str:
        """The ordering state of a session."""
        return self.of(partition).session + session_uuid
