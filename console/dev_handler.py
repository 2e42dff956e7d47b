"""The handler module of `maskline dev`: passes handled events to listeners in this process.

No phone number passes through here: only the session, the event's name, its sequence number and its order.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from maskline import Context, on
from maskline.schemas.events import Event, RecordingEvent

NAME: Final = "maskline dev"
"""The handler's name in logs and metrics."""


class HandledEvent(NamedTuple):
    """An event that reached the handlers; fields as in `Context`."""

    session_uuid: str
    entry_id: str
    event_name: str
    recording: bool
    number: int | None
    run: int
    order: str
    missing: tuple[int, ...]
    received_at: datetime


Listener = Callable[[HandledEvent], None]

_listeners: Final[list[Listener]] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every handled event. The function that is returned ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


@on(Event, name=NAME, retries=0, on_give_up="skip")
async def report_handled(event: Event, ctx: Context) -> None:
    """Pass an event on to the listeners."""
    handled = HandledEvent(
        ctx.session_uuid,
        ctx.entry_id,
        event.event_name,
        isinstance(event, RecordingEvent),
        ctx.sequence_number,
        ctx.run,
        ctx.order,
        ctx.missing,
        ctx.received_at,
    )
    for listener in _listeners:
        listener(handled)
