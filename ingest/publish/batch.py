"""One batch of callbacks on its way to Redis: its callbacks, their completions, and the check of its deadline.

A batch is either what requests have gathered, each callback with its completion, or a page of the spool, with one
future for the whole page.

An event loop that stood still has not read the replies that are there. So a deadline is not final at the first check:
the batch is checked again DEADLINE_RECHECK_S later, when replies that have come are read.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any, Final

from maskline.ingest.outcome import Completions
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import RedisUnavailableError

DEADLINE_RECHECK_S: Final = 0.05
"""Between two checks of an overdue batch: time to read what has come while the loop stood still."""
DEADLINE_CHECKS_MAX: Final = 5
"""A loop that is late at every check is overloaded for good; then requests must not wait any longer."""

Refused = tuple[Completions, list[int], list[bytes]]
"""Callbacks that were refused for one reason: completions, partition hashes, values."""


class Batch:
    """Callbacks that go out together, and who awaits them. It is the ReplyReceiver of its commands.

    `first_at`: when it was begun, by the loop's clock. `on_replies`: called once with the batch and its replies, or
    None if its connection was lost.
    """

    __slots__ = (
        "_on_replies",
        "answered",
        "check_at",
        "checks",
        "completions",
        "connection",
        "first_at",
        "given_up",
        "known",
        "page",
        "partition_hashes",
        "sent_at",
        "size_bytes",
        "values",
    )

    def __init__(self, first_at: float, on_replies: "Callable[[Batch, list[Any] | None], None]") -> None:
        self._on_replies = on_replies
        self.partition_hashes: list[int] = []
        self.values: list[bytes] = []
        self.completions: Completions = []
        self.page: asyncio.Future[list[str]] | None = None
        """Awaits the whole batch where it is a page of the spool."""
        self.known: list[bool] = []
        """For each row of a page: whether it was appended before, and lacks only the confirmation."""
        self.size_bytes = 0
        self.first_at = first_at
        self.sent_at = first_at
        self.connection: PipelinedConnection | None = None
        """Over which it was sent; None before."""
        self.answered = False
        """Whether its replies have come, or never will."""
        self.checks = 0
        """How often its deadline was checked."""
        self.check_at = inf
        """When its deadline is checked, by the loop's clock; infinite where it has none."""
        self.given_up = False
        """Its callbacks went elsewhere; its replies only show whether the server still answers."""

    def done(self) -> bool:
        """Whether its replies have come, or never will."""
        return self.answered

    def set_result(self, replies: list[Any], /) -> None:
        """Its replies have come."""
        self.answered = True
        self._on_replies(self, replies)

    def set_exception(self, _: RedisUnavailableError, /) -> None:
        """Its connection was lost."""
        self.answered = True
        self._on_replies(self, None)

    def is_overdue(self, now: float, timeout_s: float) -> bool:
        """Check the deadline, once `check_at` has come: whether the batch is overdue, else `check_at` is moved.

        It is checked again where this was the first check, or where the loop was late for this one.
        """
        if self.checks >= DEADLINE_CHECKS_MAX or (self.checks and now <= self.check_at + DEADLINE_RECHECK_S):
            return True
        self.checks += 1
        self.check_at = max(now + DEADLINE_RECHECK_S, self.sent_at + timeout_s / 2)
        return False

    def complete_page(self, codes: list[str], known_code: str) -> None:
        """Complete a page: `codes` has one for each row that was appended, `known_code` is that of all others."""
        if self.page is not None and not self.page.done():
            fresh = iter(codes)
            self.page.set_result([known_code if known else next(fresh) for known in self.known])

    def complete(self, codes: list[str]) -> dict[str, Refused]:
        """Complete the callbacks with an empty code. Returns the others by code, which still await an outcome."""
        refused: dict[str, Refused] = {}
        rows = zip(self.completions, self.partition_hashes, self.values, codes, strict=True)
        for completion, partition_hash, value, code in rows:
            if completion.done():
                continue
            if not code:
                completion.set_result(None)
                continue
            completions, partition_hashes, values = refused.setdefault(code, ([], [], []))
            completions.append(completion)
            partition_hashes.append(partition_hash)
            values.append(value)
        return refused

    def give_up(self) -> None:
        """Drop the callbacks, which went elsewhere; the replies are still awaited."""
        self.given_up = True
        self.completions, self.partition_hashes, self.values, self.size_bytes = [], [], [], 0
