"""The outcome of a callback: its codes, the error for "not stored", and the completion that receives it.

A leaf: the publisher, the spool and the router share these types without importing each other.

| code | means |
| --- | --- |
| `redis_away`, `redis_timeout` | no connection; connected, but no reply in time |
| `redis_oom`, `redis_readonly`, … | the first word of Redis's refusal |
| `redis_error` | a refusal that begins with no word known here |
| `not_durable` | taken by Redis, but not confirmed as MASKLINE_DURABILITY asks |
| `behind` | Redis takes callbacks, but earlier ones of the session still lie in the spool |
| `spool_full`, `spool_failed`, `spool_slow` | the spool cannot keep it: no room, an error, no fsync in time |
| `busy` | more callbacks wait than may |
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from maskline.schemas.errors import MasklineError

AWAY: Final = "redis_away"
TIMEOUT: Final = "redis_timeout"
NOT_DURABLE: Final = "not_durable"
BEHIND: Final = "behind"
BUSY: Final = "busy"
SPOOL_FULL: Final = "spool_full"
SPOOL_FAILED: Final = "spool_failed"
SPOOL_SLOW: Final = "spool_slow"

_REFUSAL_WORDS: Final = frozenset(
    {"oom", "readonly", "loading", "misconf", "noreplicas", "noauth", "noperm", "wrongtype", "masterdown"}
    | {"clusterdown", "moved", "ask", "tryagain", "busy", "unblocked"}
)
"""First words of error replies that become part of a code. They bound the number of codes."""

SERVER_FAILURES: Final = frozenset(
    {AWAY, TIMEOUT, NOT_DURABLE, "redis_oom", "redis_readonly", "redis_loading", "redis_misconf"}
    | {
        "redis_noreplicas",
        "redis_noauth",
        "redis_noperm",
        "redis_masterdown",
        "redis_clusterdown",
        "redis_busy",
    }
)
"""Failures of a whole server, which the next callback would meet as well: they open the circuit breaker."""

WRONG_SERVER: Final = frozenset({"redis_readonly", "redis_noauth", "redis_masterdown", "redis_loading"})
"""Refusals after which a new connection may reach a server that takes writes, as after a failover."""

MOVED: Final = frozenset({"redis_moved", "redis_ask", "redis_clusterdown", "redis_tryagain"})
"""Refusals by a cluster's node: the key is, or is about to be, on another one."""


class NotStoredError(MasklineError):
    """Neither Redis nor the spool stored this callback; the next one may succeed.

    Redis's or the disk's fault, or too many callbacks at once: `code` says which.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"not kept: {code}")
        self.code = code
        """A stable word from the table above."""


def refusal_code(reply: Any) -> str:
    """The code of an error reply: that of `OOM command not allowed …` is `redis_oom`."""
    word = str(reply).partition(" ")[0].lower()
    return f"redis_{word}" if word in _REFUSAL_WORDS else "redis_error"


class Completion(Protocol):
    """Receives the outcome of one callback: a future, or a lighter object with the same methods
    (ingest.http.pending_request).

    It is completed once, with None or a NotStoredError, and only while it is not `done`. Completing it may call back
    into the router.
    """

    def done(self) -> bool:
        """Whether the outcome is known, or nobody awaits it any more."""

    def set_result(self, result: None, /) -> None:
        """The callback is stored."""

    def set_exception(self, exception: NotStoredError, /) -> None:
        """Complete with an error: the callback is stored nowhere."""


Completions = list[Completion]

OnRefused = Callable[[str, Completions, list[int], list[bytes]], None]
"""Takes over callbacks that were refused for one reason: `code`, `completions`, `partition_hashes`, `values`."""


def fail_all(code: str, completions: Completions, _hashes: list[int], _values: list[bytes]) -> None:
    """An OnRefused that stores the callbacks nowhere."""
    for completion in completions:
        # One exception each: a shared one would gather the tracebacks of all who await it.
        completion.set_exception(NotStoredError(code))


class InFlight:
    """How many callbacks of the process await Redis or the spool: one sum, so that one bound holds for both."""

    __slots__ = ("callbacks", "size_bytes")

    def __init__(self) -> None:
        self.callbacks = 0
        self.size_bytes = 0
