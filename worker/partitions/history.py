"""Decides whether a server has everything that the owner of a partition has seen of it. Pure.

After a failover or a crash a server may lack the newest data: replication and append-only files lose the end, and
nothing before it. So a server has everything if it has the last things that the owner has seen:

- the acquisition: the fence bears the owner's token and worker. A worker never gets the same token twice, even if
  servers forget (`commands/lua/acquire.lua`): otherwise two tenures on two servers could be taken for one;
- the last commit that Redis confirmed, or the one under way: the fence bears its number;
- the last entry read, unless the cursor of that commit stands at it: the entry is there, with the same content. The ID
  alone could belong to another entry: a server whose clock is behind assigns the same IDs again.

If one of these is missing, the owner must give the partition up and acquire it anew. An entry that it holds may not
exist any more, so that a repeat of it would count as a duplicate; and its cursor may be beyond the stream's end.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

StreamEntry = Sequence[Any]
"""ID and fields, as XREAD and XRANGE reply."""


class Seen(NamedTuple):
    """The last things that an owner has seen of its partition."""

    lease_value: str
    """`<fencing token> <worker>`."""
    commits: dict[int, str]
    """Numbers of the last commit that was confirmed (0: none) and of the one under way, each with its cursor."""
    read_id: str
    """The last entry read; the cursor found at the acquisition if none was read."""
    last_entry: StreamEntry | None
    """That entry, None if none was read."""


def has_all(seen: Seen, fence: Sequence[bytes | None], found: Sequence[StreamEntry]) -> bool:
    """Whether the server has all that was seen.

    `fence`: token, owner and commit of the fence, as HMGET replies. `found`: the entries that XRANGE finds under
    `read_id`.
    """
    token, owner, number = fence
    if token is None or owner is None or b"%b %b" % (token, owner) != seen.lease_value.encode():
        return False
    cursor = seen.commits.get(_number(number))
    if cursor is None:
        return False
    if cursor == seen.read_id:
        return True
    return seen.last_entry is not None and len(found) == 1 and list(found[0]) == list(seen.last_entry)


def _number(text: bytes | None) -> int:
    """The commit's number: 0 if empty, as before the first commit; -1, which no commit has, if the text is not a
    number.
    """
    if not text:
        return 0
    return int(text) if text.isdigit() else -1
