"""Spool notices: how an ingest node says in Redis that it holds spooled callbacks of a partition. Pure.

Workers read them before they give a number up: the missing callback may lie in a spool. A notice is an entry of the
stream `{ns:p}:spooled`, beside the callbacks' stream on the same server, so its ID dates it by the same clock.

| field | holds |
| --- | --- |
| `node` | the node, as `<host>:<path of its spool file>` |
| `held_ms` | for how long it has held callbacks of the partition, in ms; empty: it holds none any more |
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

NOTICES_MAX: Final = 512
"""Notices that are kept of a partition. With a hundred nodes that hold callbacks at once they reach back for 50 s, with
four for 20 minutes; a notice takes a hundred bytes."""

NOTICE_REPEAT_MS: Final = 10_000
"""How often a node that still holds callbacks says so again."""

NOTICE_LIFE_MS: Final = 3 * NOTICE_REPEAT_MS
"""A node that has said no more for so long is taken to be dead. Long enough for a restart after a crash, which finds
the spool file again, and less than the default MASKLINE_GAP_SPOOL_MS."""

_DIGITS_MAX: Final = 15


class SpoolNotice(NamedTuple):
    """One notice of one node about one partition."""

    node: str
    at_ms: int
    """When it was written, by the server's clock, in ms since the epoch."""
    held_ms: int | None
    """For how long the node had held callbacks of the partition then, in ms; None if it held none any more."""


def write_notice(key: str, node: str, held_ms: int | None) -> tuple[str | int, ...]:
    """The command that writes a notice to the stream `key`; `node` and `held_ms` as in SpoolNotice."""
    held = "" if held_ms is None else max(0, held_ms)
    return "XADD", key, "MAXLEN", NOTICES_MAX, "*", "node", node, "held_ms", held


def read_notice(entry_id: bytes, fields: Sequence[bytes]) -> SpoolNotice | None:
    """Read an entry of the stream, as XREAD returns it; None if it is no notice."""
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    node, held = values.get(b"node"), values.get(b"held_ms")
    if not node or held is None or (held and not held.isdigit()) or len(held) > _DIGITS_MAX:
        return None
    return SpoolNotice(
        node.decode(errors="replace"), int(entry_id.partition(b"-")[0]), int(held) if held else None
    )
