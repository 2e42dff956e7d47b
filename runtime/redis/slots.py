"""Which server of a Redis Cluster has which key, from its reply to CLUSTER SLOTS. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from maskline.runtime.redis.url import Server

SLOTS: Final = 16_384  # of every cluster: the cluster specification

__all__ = ["SLOTS", "SlotMap", "read_slots"]


class SlotMap:
    """The primaries of a cluster and the slots each of them serves. Immutable; a slot may have no server."""

    __slots__ = ("_owners", "_slot_of", "primaries")

    def __init__(self, owners: dict[int, Server]) -> None:
        # Only with a cluster, since redis-py makes a node's start longer by a fifth.
        from redis.crc import key_slot  # noqa: PLC0415

        self._slot_of = key_slot
        self._owners = owners
        self.primaries = tuple(sorted(set(owners.values())))

    def server_of(self, key: str) -> Server | None:
        """The primary that serves the key's slot; None where none does."""
        return self._owners.get(self._slot_of(key.encode()))

    @property
    def complete(self) -> bool:
        """Whether every slot has a server."""
        return len(self._owners) == SLOTS


def read_slots(reply: Sequence[Any], asked: Server) -> SlotMap:
    """Read the reply to CLUSTER SLOTS: for each range of slots `[first, last, [host, port, …], replicas…]`.

    `asked`: the node that replied. One that does not know its own address leaves the host empty, which means `asked`.
    Raises ValueError for anything else than such a reply.
    """
    owners: dict[int, Server] = {}
    try:
        for first, last, primary, *_ in reply:
            host = (primary[0] or b"").decode()
            server = Server(host if host not in ("", "?") else asked.host, int(primary[1]))
            owners.update(dict.fromkeys(range(first, last + 1), server))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError("not a map of slots") from error
    return SlotMap(owners)
