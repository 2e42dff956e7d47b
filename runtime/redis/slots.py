"""Which server of a Redis Cluster has which key: the answer to CLUSTER SLOTS, read."""

from collections.abc import Sequence
from typing import Any, Final

from redis.crc import key_slot

from maskline.runtime.redis.url import Server

SLOTS: Final = 16_384  # of every cluster: the cluster specification

__all__ = ["SLOTS", "SlotMap", "read_slots"]


class SlotMap:
    """Immutable: the primaries, and the slots each of them has. Slots that nobody has are unknown."""

    __slots__ = ("_owners", "primaries")

    def __init__(self, owners: dict[int, Server]) -> None:
        self._owners = owners
        self.primaries = tuple(sorted(set(owners.values())))

    def server_of(self, key: str) -> Server | None:
        return self._owners.get(key_slot(key.encode()))

    @property
    def complete(self) -> bool:
        return len(self._owners) == SLOTS


def read_slots(reply: Sequence[Any], asked: Server) -> SlotMap:
    """The reply to CLUSTER SLOTS: `[first, last, [host, port, …], replicas…]` a range.

    A node that does not know its own address leaves the host empty: then it is the one that was `asked`. Raises
    ValueError for what is no such reply.
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
