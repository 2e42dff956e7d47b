"""The Lua scripts of `lua/` as typed functions. The head of each script lists its KEYS, its ARGV and its reply.

Each returns one packed command. The scripts travel whole, by EVAL: they are called some times a second at most, and a
server that has restarted knows none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.redis.pipeline import pack
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys, RefusedKeys

REQUEST_FIELD: Final = b"r"
"""The field of an entry that holds the request: see keep.lua."""


def _read(name: str) -> bytes:
    return Path(__file__).with_name("lua").joinpath(f"{name}.lua").read_bytes()


_KEEP: Final = _read("keep")
_REMOVE: Final = _read("remove")
_RELEASE: Final = _read("release")


class Kept(NamedTuple):
    """The reply of `keep`, as numbers of requests."""

    kept: int
    pushed_out: int
    """Older ones that made room."""
    expired: int


def keep(keys: RefusedKeys, requests: Sequence[tuple[str, bytes]], *, max_bytes: int, ttl_ms: int) -> bytes:
    """Keep refused requests, each given by its share (`request.share_of`) and its msgpack."""
    values = [part for pair in requests for part in pair]
    return pack("EVAL", _KEEP, len(keys), *keys, max_bytes, ttl_ms, *values)


def read_kept(reply: Any) -> Kept:
    """Read the reply of `keep`. Raises RedisUnavailableError where the server refuses."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(str(reply))
    return Kept(*reply)


def remove(keys: RefusedKeys, ids: Sequence[str]) -> bytes:
    """Remove requests by the IDs of their entries. The reply is how many were there."""
    return pack("EVAL", _REMOVE, len(keys), *keys, *ids)


def release(keys: Keys, partition: int, key: str, value: bytes, *, remembered_ms: int) -> bytes:
    """Append a callback to a partition's stream, unless the request with this key was before.

    `key`: of the RefusedRequest. `value`: the msgpack of the RawCallback. `remembered_ms`: how long the key is
    remembered, longer than any node keeps the request. The reply is 1, or 0 if it was appended before.
    """
    callbacks, released = keys.callbacks(partition), keys.released(partition)
    return pack("EVAL", _RELEASE, 2, callbacks, released, key, value, CALLBACK_FIELD, remembered_ms)
