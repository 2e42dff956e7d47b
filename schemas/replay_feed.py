"""What `maskline replay --from-archive` writes into Redis for the workers, which do not see the archive. Pure.

The *feed* of a job in a partition is a stream, `{ns:p}:feed:<group>:<job id>`. The command adds sessions to it, whole
ones, and waits while FEED_MAX_BYTES of them are not taken on; the owner of the partition reads it and trims what its
commits have taken on. An entry has one field:

| field | ID | value |
| --- | --- | --- |
| `b` | 0-1 | begins the feed, so that there is one before the job is known |
| `s` | `<session>-<part>` | a FeedPart: a part of a session. The command numbers sessions from 1 |
| `e` | after all others | ends it: no session follows |

IDs make every addition harmless to repeat. The command renews the feed's time to live while it runs; a feed that is
gone before its end is that of a command that died, and ends the job there.
"""

from typing import Final

import msgspec

BEGIN_FIELD: Final = b"b"
PART_FIELD: Final = b"s"
END_FIELD: Final = b"e"
BEGIN_ID: Final = "0-1"

FEED_MAX_BYTES: Final = 256 * 1024
"""Callbacks in the feed of one partition that are not taken on, in bytes; one session always fits. With 64 partitions
that is 16 MiB of Redis."""

PART_MAX_BYTES: Final = 64 * 1024
"""Callbacks in one entry, in bytes; one callback always fits."""

FEED_TTL_MS: Final = 300_000
"""How long a feed is there without its command: longer than a failover takes, and than a laptop sleeps for a coffee."""

FEED_LEFT_TTL_MS: Final = 86_400_000
"""The same once all is in it, and its command has gone."""


class FeedPart(msgspec.Struct, frozen=True, array_like=True):
    """A part of a session."""

    session_uuid: str
    last: bool
    """No further part of the session follows."""
    callbacks: list[tuple[str, bytes]]
    """Entry IDs, as they were when the callbacks came, each with the msgpack of its RawCallback; in their order."""

    def __repr__(self) -> str:
        # The callbacks are left out, as they have phone numbers.
        return f"FeedPart({self.session_uuid!r}, {len(self.callbacks)} callbacks)"


encode_part: Final = msgspec.msgpack.Encoder().encode
decode_part: Final = msgspec.msgpack.Decoder(FeedPart).decode
"""Raises msgspec.MsgspecError for what `encode_part` has not written."""
