"""Records what handlers were called with, and what became of the call."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from maskline.schemas.call_summary import CallSummary, Handled
from maskline.schemas.dead_letter_view import DeadLetterContext, DeadLetterView
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundDeadHandler, BoundHandler
from maskline.worker.api.context import Context
from maskline.worker.ordering.reorder import Order


class Call(NamedTuple):
    """One attempt of one handler, and what it was given; the fields of a `Context` mean the same here."""

    handler: str
    """The handler's name, as logs and dead letters show it."""
    event: Event
    """The event; for a handler of CallSummary, that: see `summary`."""
    order: Order
    missing: tuple[int, ...]
    run: int
    attempt: int
    idempotency_key: str
    error: BaseException | None
    """What the handler raised; None if it has handled the event."""
    skipped: tuple[int, ...] = ()
    replayed: bool = False
    fencing_token: int = 1

    @property
    def summary(self) -> CallSummary | None:
        """The call summary that the handler got; None if it got an event."""
        given: Handled = self.event
        return given if isinstance(given, CallSummary) else None


class DeadCall(NamedTuple):
    """One call of a handler of dead letters."""

    handler: str
    letter: DeadLetterView
    error: BaseException | None
    """What the handler raised; None if it has ended well."""


OnCall = Callable[[Call], None]
"""Called with each attempt that has ended, in the thread that it ran in."""


def recorded(handler: BoundHandler, on_call: OnCall) -> BoundHandler:
    """The handler, whose attempts are recorded."""

    def record(event: Event, ctx: Context, error: BaseException | None) -> None:
        on_call(
            Call(
                handler.name,
                event,
                ctx.order,
                ctx.missing,
                ctx.run,
                ctx.attempt,
                ctx.idempotency_key,
                error,
                ctx.skipped,
                ctx.replayed,
                ctx.fencing_token,
            )
        )

    call: Callable[..., Any] = _recording(handler.call, record, in_thread=handler.in_thread)
    return msgspec.structs.replace(handler, call=call)


def dead_recorded(handler: BoundDeadHandler, on_call: Callable[[DeadCall], None]) -> BoundDeadHandler:
    """The handler of dead letters, whose calls are recorded."""

    async def call(letter: DeadLetterView, ctx: DeadLetterContext) -> None:
        error: BaseException | None = None
        try:
            await handler.call(letter, ctx)
        except BaseException as raised:
            error = raised
            raise
        finally:
            on_call(DeadCall(handler.name, letter, error))

    return msgspec.structs.replace(handler, call=call)


def _recording(
    call: Callable[..., Any],
    record: Callable[[Event, Context, BaseException | None], None],
    *,
    in_thread: bool,
) -> Callable[..., Any]:
    def plain(event: Event, ctx: Context) -> Any:
        try:
            result = call(event, ctx)
        except BaseException as error:
            record(event, ctx, error)
            raise
        if inspect.isawaitable(result):  # a plain function around an async one
            return awaiting(event, ctx, result)
        record(event, ctx, None)
        return result

    async def awaiting(event: Event, ctx: Context, work: Awaitable[Any] | None = None) -> Any:
        try:
            result = await (call(event, ctx) if work is None else work)
        except BaseException as error:
            record(event, ctx, error)
            raise
        record(event, ctx, None)
        return result

    return plain if in_thread else awaiting
