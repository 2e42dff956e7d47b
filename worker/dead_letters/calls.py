"""Calls the handlers of dead letters, with their time limits. What goes wrong with them is logged, and nothing else."""

import asyncio
import contextvars
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.call_summary import Handled
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, decode_callback
from maskline.schemas.dead_letter_view import DeadLetterContext, DeadLetterView
from maskline.schemas.errors import UndecodableEntryError
from maskline.worker.api.binding import BoundDeadHandler
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.entries.dead_letter import DeadLetter, group_key_of
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.error_text import error_message, origin_of

CANCEL_GRACE_S: Final = 5.0
"""How long a handler may take to end once it was cancelled at its time limit; after that it is left to itself."""

_log = get_logger("maskline.worker")
_handler_log = get_logger("maskline.handler")


def view_of(letter: DeadLetter, letter_id: str, decoder: EntryDecoder) -> DeadLetterView:
    """What handlers see of a letter. `letter_id`: its public ID."""
    return DeadLetterView(
        id=letter_id,
        session_uuid=letter.session_uuid,
        event_name=letter.event_name,
        sequence_number=letter.sequence_number,
        handler=letter.handler,
        code=letter.code,
        reason=letter.reason,
        attempts=letter.attempts,
        received_at=None if letter.received_at_ms is None else _moment(letter.received_at_ms),
        failed_at=_moment(letter.failed_at_ms) or datetime.fromtimestamp(0, UTC),
        parked=letter.parked,
        group=group_key_of(letter),
        traceback=letter.traceback,
        event=_event_of(letter, decoder),
        entry_id=letter.entry_id,
        callback=_callback_of(letter),
    )


def _event_of(letter: DeadLetter, decoder: EntryDecoder) -> Handled | None:
    try:
        arrival = decoder.arrival_of(letter.entry_id, (CALLBACK_FIELD, letter.callback), False)
    except Exception:  # noqa: BLE001 - that it cannot be decoded may be why there is a letter
        return None
    event: Handled = arrival.payload.event
    return event


def _callback_of(letter: DeadLetter) -> RawCallback | None:
    try:
        return decode_callback(letter.callback)
    except UndecodableEntryError:
        return None


def _moment(milliseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # of an entry that something else has written
        return None


class DeadLetterCalls:
    """The handlers of dead letters of a worker.

    `context`: the one that the resources were opened in; every call begins with a copy of it. `decoder`: decodes the
    letters' callbacks.
    """

    def __init__(
        self, handlers: Sequence[BoundDeadHandler], context: contextvars.Context, decoder: EntryDecoder
    ) -> None:
        self._handlers = tuple(handlers)
        self._clean = CleanContext(context)
        self._decoder = decoder

    @property
    def longest_s(self) -> float:
        """How long the calls for one letter take at most."""
        return sum(handler.timeout_s + CANCEL_GRACE_S for handler in self._handlers)

    async def call(self, letter: DeadLetter, letter_id: str, token: int) -> None:
        """Call all handlers for a letter, one after the other. `letter_id`: its public ID. `token`: the fencing token.

        Raises nothing that a handler raises.
        """
        view = view_of(letter, letter_id, self._decoder)
        if view.event is not None:
            KNOWN_NUMBERS.add_event(view.event)
        for handler in self._handlers:
            failure = await self._call_one(handler, view, token)
            if failure is not None:
                _log.error(
                    "dead letter handler failed",
                    dead_handler=handler.name,
                    letter=letter_id,
                    why=f"{type(failure).__name__}: {error_message(failure)}".removesuffix(": "),
                    where=origin_of(failure).frame,
                )

    async def _call_one(
        self, handler: BoundDeadHandler, view: DeadLetterView, token: int
    ) -> BaseException | None:
        """Call a handler. Returns what it failed with; None if it succeeded."""
        ctx = DeadLetterContext(
            idempotency_key=f"dead:{view.id}",
            fencing_token=token,
            log=_handler_log.bind(
                letter=view.id,
                dead_handler=handler.name,
                session_uuid=view.session_uuid,
                event_name=view.event_name,
                sequence_number=view.sequence_number,
            ),
        )
        task = asyncio.create_task(_outcome(handler, view, ctx), context=self._clean.copy())
        try:
            await asyncio.wait({task}, timeout=handler.timeout_s)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
            return TimeoutError(f"no end after {handler.timeout_s * 1000:.0f} ms")
        finally:
            task.cancel()


async def _outcome(
    handler: BoundDeadHandler, view: DeadLetterView, ctx: DeadLetterContext
) -> BaseException | None:
    try:
        await handler.call(view, ctx)
    except BaseException as error:  # noqa: BLE001 - a SystemExit must not get to the event loop, which it would end
        return error
    return None
