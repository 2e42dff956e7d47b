"""Every Redis key is made here.

All keys of a partition share the hash tag `{namespace:partition}`, so that one Lua script may touch all of them on
Redis Cluster, and the partitions spread over its nodes.

| key | type | holds |
| --- | --- | --- |
| `{ns:p}:callbacks` | stream | raw callbacks of partition p, consumer groups at their cursors |
| `{ns:p}:spooled` | stream | which ingest nodes hold spooled callbacks of partition p (`schemas.spool_notices`) |
| `{ns:p}:dead` | stream | dead letters of partition p, of all groups |
| `{ns:p}:dead-seen:<group>` | string | how far the group's handlers of dead letters (`@on.dead`) have come in it |
| `{ns:p}:lease:<group>` | string | who owns p for the group, `<fencing token> <worker id>`, expires with the lease |
| `{ns:p}:fence:<group>` | hash | the last `token`, its `owner` and `commit`; `clean`: the last token given back |
| `{ns:p}:marks:<group>` | hash | `<entry id> <handler>`: crashes of a handler that may bring its worker down; expires |
| `{ns:p}:session:<group>:<session>` | string | ordering state; expires, unless the session has a retry queue |
| `{ns:p}:timeline:<group>:<session>` | hash | what `handlers.timeline` keeps of a session; expires |
| `{ns:p}:retry:<group>:<H>:<session>` | list | *retry queue*: a session's events that wait for H, oldest first |
| `{ns:p}:retry-due:<group>:<H>` | sorted set | sessions, by when their queue is to be tried; no parked ones |
| `{ns:p}:retry-parked:<group>:<H>` | sorted set | sessions whose queue is parked, by since when; it may be empty |
| `{ns:p}:retry-since:<group>:<H>` | sorted set | all sessions with a queue, by since when there is one |
| `{ns:p}:retry-counts:<group>` | hash | `waiting <H>`: events in the queues of H; `parked <H>`: in the parked ones |
| `{ns:p}:retry-taken:<group>` | hash | `<H> <session>`: how many workers took it, and the last; gone at its end |
| `{ns:p}:jobs:<group>` | hash | job id: a job's progress in this partition |
| `{ns:p}:call-summary:<group>:<session>` | hash | what `handlers.call_summary` keeps of a session; expires |
| `{ns:p}:call-summary-due:<group>` | sorted set | sessions with a call under way, by when they are silent |
| `{ns:p}:feed:<group>:<job id>` | stream | sessions of an archive for a job to run again; expires |
| `{ns:p}:released` | set | keys of refused callbacks that were released into p, so that each goes in once; expires |
| `{ns:fsync-i}:callbacks` | stream | nothing: written to test whether the server fsyncs before it confirms |
| `{ns:refused}:requests` | stream | refused callbacks that are kept for release, of all nodes |
| `{ns:refused}:shares` | sorted set | client address, an IPv6 one as its /64 network → bytes that its requests take |
| `{ns:refused}:ages` | sorted set | for each request `<address> <time>-<number> <bytes>`, by address and age |
| `{ns:refused}:total` | string | bytes that all of them take |
| `ns:layout` | hash | what all nodes must agree on: partitions, layout version, the key of number tokens |
| `ns:workers:<group>` | sorted set | live workers by their last heartbeat, Redis time in ms |
| `ns:jobs:<group>` | hash | job id: what was asked for |
| `ns:job-rate:<group>:<job id>` | string | when the runs of a job that workers took are paid off, in µs; expires |
| `ns:control:<group>` | hash | `revision`, raised by whoever changes jobs or pauses; `paused <H>`: since when and why |
| `ns:handlers:<group>` | hash | worker id: the handlers that are down in that worker |

`<H>` is a handler's name, percent-encoded (`encode_handler`). Times in sorted sets are the server's, in milliseconds.
"""

from typing import NamedTuple
from urllib.parse import quote, unquote
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


def encode_handler(name: str) -> str:
    """A handler's name as keys and hash fields have it: percent-encoded, so without colons and spaces."""
    return quote(name, safe=".-_", errors="surrogatepass")


def decode_handler(encoded: str) -> str:
    """The name that `encode_handler` was given."""
    return unquote(encoded, errors="surrogatepass")


class PartitionKeys(NamedTuple):
    """The keys of one partition."""

    callbacks: str
    dead: str
    lease: str
    fence: str
    marks: str
    session: str
    """Prefix of a session's key; the SessionUUID follows."""
    retry: str
    """Prefix of the retry queues; `<H>:<session>` follows."""
    retry_due: str
    """Prefix; `<H>` follows."""
    retry_parked: str
    """Prefix; `<H>` follows."""
    retry_since: str
    """Prefix; `<H>` follows."""
    retry_counts: str
    retry_taken: str
    jobs: str


class RefusedKeys(NamedTuple):
    """The keys of the refused callbacks, which the scripts of `ingest/refused/lua/` take in this order."""

    requests: str
    shares: str
    ages: str
    total: str


class Keys:
    """The keys of one namespace, and of one consumer group where there is a key for each group."""

    __slots__ = (
        "_partitions",
        "control",
        "group",
        "handlers",
        "jobs",
        "layout",
        "namespace",
        "refused",
        "workers",
    )

    def __init__(self, namespace: str, group: str = "") -> None:
        self.namespace = namespace
        self.group = group
        self.layout = f"{namespace}:layout"
        self.workers = f"{namespace}:workers:{group}"
        self.jobs = f"{namespace}:jobs:{group}"
        self.control = f"{namespace}:control:{group}"
        self.handlers = f"{namespace}:handlers:{group}"
        self.refused = RefusedKeys(
            *(f"{{{namespace}:refused}}:{name}" for name in ("requests", "shares", "ages", "total"))
        )
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
                retry=f"{tag}:retry:{group}:",
                retry_due=f"{tag}:retry-due:{group}:",
                retry_parked=f"{tag}:retry-parked:{group}:",
                retry_since=f"{tag}:retry-since:{group}:",
                retry_counts=f"{tag}:retry-counts:{group}",
                retry_taken=f"{tag}:retry-taken:{group}",
                jobs=f"{tag}:jobs:{group}",
            )
        return keys

    def callbacks(self, partition: int) -> str:
        """The stream of a partition's callbacks."""
        return self.of(partition).callbacks

    def spooled(self, partition: int) -> str:
        """The stream of a partition's spool notices."""
        return f"{{{self.namespace}:{partition}}}:spooled"

    def dead(self, partition: int) -> str:
        """The stream of a partition's dead letters."""
        return self.of(partition).dead

    def dead_seen(self, partition: int) -> str:
        """How far the handlers of dead letters have come in a partition."""
        return f"{{{self.namespace}:{partition}}}:dead-seen:{self.group}"

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

    def timeline(self, partition: int, session_uuid: str) -> str:
        """What `handlers.timeline` keeps of a session."""
        return f"{{{self.namespace}:{partition}}}:timeline:{self.group}:{session_uuid}"

    def retry_queue(self, partition: int, handler: str, session_uuid: str) -> str:
        """The events of a session that wait for one handler. `handler`: its name as it is."""
        return f"{self.of(partition).retry}{encode_handler(handler)}:{session_uuid}"

    def retry_due(self, partition: int, handler: str) -> str:
        """When the queues of a handler are due."""
        return self.of(partition).retry_due + encode_handler(handler)

    def retry_parked(self, partition: int, handler: str) -> str:
        """The queues of a handler that wait behind a dead letter."""
        return self.of(partition).retry_parked + encode_handler(handler)

    def retry_since(self, partition: int, handler: str) -> str:
        """Since when the queues of a handler are there."""
        return self.of(partition).retry_since + encode_handler(handler)

    def retry_counts(self, partition: int) -> str:
        """How many events wait, by handler."""
        return self.of(partition).retry_counts

    def retry_taken(self, partition: int) -> str:
        """How often queues were taken to be run."""
        return self.of(partition).retry_taken

    def partition_jobs(self, partition: int) -> str:
        """The progress of jobs in a partition."""
        return self.of(partition).jobs

    def call_summary(self, partition: int, session_uuid: str) -> str:
        """What `handlers.call_summary` keeps of a session."""
        return f"{{{self.namespace}:{partition}}}:call-summary:{self.group}:{session_uuid}"

    def call_summary_due(self, partition: int) -> str:
        """When sessions with a call under way are silent."""
        return f"{{{self.namespace}:{partition}}}:call-summary-due:{self.group}"

    def feed(self, partition: int, job_id: str) -> str:
        """The sessions of an archive that a job runs again in a partition (`schemas.replay_feed`)."""
        return f"{{{self.namespace}:{partition}}}:feed:{self.group}:{job_id}"

    def job_rate(self, job_id: str) -> str:
        """The rate of a job, from which all workers take."""
        return f"{self.namespace}:job-rate:{self.group}:{job_id}"

    def released(self, partition: int) -> str:
        """The refused callbacks that were released into a partition."""
        return f"{{{self.namespace}:{partition}}}:released"
