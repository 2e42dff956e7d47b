"""Settles the fare of a call once its second leg has ended."""

from collections.abc import AsyncIterator
from decimal import Decimal

from maskline import Context, on, resource
from maskline.events import SessionSecondPartyHangup


class Fares:
    """Stands for the database or service where fares are settled: put your client in its place."""

    def __init__(self) -> None:
        self.settled: dict[str, Decimal] = {}

    async def settle(self, amount: Decimal, *, key: str) -> None:
        """Settle a fare, once: a key that was there before changes nothing."""
        self.settled.setdefault(key, amount)


@resource
async def fares() -> AsyncIterator[Fares]:
    """Opened once in a worker before its first event, and closed after its last."""
    yield Fares()


@on(SessionSecondPartyHangup)
async def settle_fare(event: SessionSecondPartyHangup, ctx: Context, fares: Fares) -> None:
    """Settle the fare. An exception means another try, later; `raise Reject("why")` means no further one."""
    if event.amount is None:
        ctx.log.info("a hangup without a charge")
        return
    # After a crash the same event comes again, with the same key: so no fare is settled twice.
    await fares.settle(event.amount, key=ctx.idempotency_key)
