"""maskline's handlers for an outage: `bill` calls a service that is away while the file BENCH_AWAY exists, `mail` none.

At the stop they write what they saw to the file BENCH_SEEN, as JSON: for `mail`, when each event was received and how
many milliseconds it took to get here; for `bill`, how many calls failed, the greatest number of an attempt, and how
many events it handled.
"""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from maskline import Context, on, resource
from maskline.events import Event

AWAY = Path(os.environ.get("BENCH_AWAY", "/nonexistent"))
CHECK_S = 0.01
"""Between two looks at the file: a look costs more than all the rest of a call."""


class Seen(msgspec.Struct):
    """What the handlers saw."""

    mail: list[tuple[float, float]] = []
    failed: int = 0
    attempts: int = 0
    handled: int = 0
    away: bool = False
    looked_s: float = 0.0

    def is_away(self) -> bool:
        now_s = time.monotonic()
        if now_s > self.looked_s + CHECK_S:
            self.away, self.looked_s = AWAY.exists(), now_s
        return self.away


@resource
async def seen() -> AsyncIterator[Seen]:
    it = Seen()
    yield it
    Path(os.environ["BENCH_SEEN"]).write_bytes(msgspec.json.encode(it))  # noqa: ASYNC240 - nothing else runs at the end


@on.every(name="bill")
async def bill(_: Event, ctx: Context, seen: Seen) -> None:
    seen.attempts = max(seen.attempts, ctx.attempt)
    if seen.is_away():
        seen.failed += 1
        raise ConnectionError("the service is away")
    seen.handled += 1


@on.every(name="mail")
async def mail(_: Event, ctx: Context, seen: Seen) -> None:
    received_s = ctx.received_at.timestamp()
    seen.mail.append((received_s, (time.time() - received_s) * 1000))
