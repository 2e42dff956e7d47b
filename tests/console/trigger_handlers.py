"""Handlers that do what `test_trigger` asks them to by the amount of an event."""

import asyncio

from maskline import Context, Reject, on
from maskline.events import Event, SessionFirstPartyAnswer, SessionPartiesHangup, SessionSecondPartyHangup


@on(SessionSecondPartyHangup, name="fares.settle")
async def settle(event: SessionSecondPartyHangup, ctx: Context) -> None:
    if event.amount == 13:
        raise ValueError(f"no fare for {event.from_number}")
    if event.amount == 14:
        raise Reject("a bad amount")
    if event.amount == 15:
        await asyncio.sleep(1.5)


@on(SessionPartiesHangup, SessionSecondPartyHangup, name="fares.tell")
async def tell(event: Event, ctx: Context) -> None: ...


@on(SessionFirstPartyAnswer, SessionPartiesHangup, name="fares.alone")
async def of_an_event_that_comes_before_the_others(event: Event, ctx: Context) -> None: ...
