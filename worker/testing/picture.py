"""What an order table shows of a harness: gathers it, and says why something waits."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.entries.queue_item import decode_item
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.partitions.session import LiveSession
from maskline.worker.testing.calls import Call
from maskline.worker.testing.kept import Kept, Place
from maskline.worker.testing.order_table import Block, Row, order_table
from maskline.worker.testing.parts import Arrived


class Picture(NamedTuple):
    """What went on in a harness until now."""

    arrivals: Sequence[Arrived]
    called: Sequence[tuple[int, Call]]
    """Every attempt, with the time at which it ended."""
    kept: Kept
    waiting: Sequence[LiveSession]
    """The sessions with events that wait for others."""
    gates: HandlerGates | None
    start_ms: int
    """From when on times are counted."""
    now_ms: int


def draw(picture: Picture) -> str:
    """The order table as text."""
    for _, call in picture.called:
        KNOWN_NUMBERS.add_event(call.event)
    for arrived in picture.arrivals:
        if (arrival := _arrival(arrived.entry_id, arrived.encoded)) is not None:
            KNOWN_NUMBERS.add_event(arrival.payload.event)
    blocks = [
        Block("arrived", [_arrival_row(arrived) for arrived in picture.arrivals]),
        *_handler_blocks(picture.called),
        Block("wait for others in their session", [*_gap_rows(picture)]),
        *_queue_blocks(picture),
        Block("dead letters", [*_letter_rows(picture.kept)]),
    ]
    return order_table(blocks, start_ms=picture.start_ms, now_ms=picture.now_ms, hide=KNOWN_NUMBERS.redact)


def _arrival(entry_id: str, encoded: bytes) -> Arrival | None:
    """A callback, decoded; None if it cannot be."""
    try:
        return entry_decoder().arrival_of(entry_id, (CALLBACK_FIELD, encoded), False)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the table shows the others
        return None


def _row(at_ms: int | None, entry_id: str, encoded: bytes, note: str) -> Row:
    arrival = _arrival(entry_id, encoded)
    if arrival is None:
        return Row(at_ms, "", "(not readable)", None, note)
    event = arrival.payload.event
    return Row(at_ms, event.session_uuid, event.event_name, arrival.number, note)


def _arrival_row(arrived: Arrived) -> Row:
    note = {"released": "", "waits": "had to wait"}.get(arrived.became, arrived.became)
    return _row(arrived.at_ms, arrived.entry_id, arrived.encoded, note)


def _handler_blocks(called: Iterable[tuple[int, Call]]) -> list[Block]:
    """A block for each handler, in the order of their first calls. Attempts that failed alike share a row."""
    alike: dict[str, list[tuple[int, list[Call]]]] = {}
    for at_ms, call in called:
        before = alike.setdefault(call.handler, [])
        if before and before[-1][0] == at_ms and _failed_alike(before[-1][1][-1], call):
            before[-1][1].append(call)
        else:
            before.append((at_ms, [call]))
    return [
        Block(f"{handler} got", [_call_row(at_ms, calls) for at_ms, calls in those])
        for handler, those in alike.items()
    ]


def _failed_alike(before: Call, call: Call) -> bool:
    return (
        before.idempotency_key == call.idempotency_key
        and before.attempt + 1 == call.attempt
        and repr(before.error) == repr(call.error)
    )


def _call_row(at_ms: int, calls: Sequence[Call]) -> Row:
    event = calls[0].event
    number = getattr(event, "sequence_number", None)  # a call summary has none
    return Row(at_ms, event.session_uuid, event.event_name, number, _call_note(calls))


def _call_note(calls: Sequence[Call]) -> str:
    call = calls[-1]
    said: list[str] = [call.order]
    if call.missing:
        said.append(f"missing {_numbers(call.missing)}")
    if call.skipped:
        said.append(f"skipped {_numbers(call.skipped)}")
    if call.run:
        said.append(f"run {call.run}")
    if call.replayed:
        said.append("replayed")
    if len(calls) > 1:
        said.append(f"attempts {calls[0].attempt}-{call.attempt}")
    elif call.attempt > 1 or call.error is not None:
        said.append(f"attempt {call.attempt}")
    error = call.error
    failed = "" if error is None else f": {type(error).__name__}: {error}".removesuffix(": ")
    return ", ".join(said) + failed


def _numbers(numbers: Sequence[int]) -> str:
    """The numbers, runs of them drawn together: `3 5-7`."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = parts[-1][0], number
        else:
            parts.append((number, number))
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _gap_rows(picture: Picture) -> Iterable[Row]:
    for session in picture.waiting:
        for arrival in session.waiting:
            lane = session.state.recording if arrival.recording else session.state.status
            entry, due = arrival.payload, lane.next
            for_what = "the first number" if due is None else f"number {due}"
            until = ""
            if session.gap_ends_ms is not None:
                until = f", until {(session.gap_ends_ms - picture.start_ms) / 1000:+.3f}s"
            yield Row(
                int(entry.entry_id.partition("-")[0]),
                session.uuid,
                entry.event.event_name,
                arrival.number,
                f"for {for_what}{until}",
            )


def _queue_blocks(picture: Picture) -> list[Block]:
    queues = picture.kept.queues
    blocks: dict[str, list[Row]] = {}
    for at_ms, place in queues.due():
        state = "" if picture.gates is None else _state(picture.gates, place.handler)
        due = f"set aside, due {(at_ms - picture.start_ms) / 1000:+.3f}s"
        blocks.setdefault(place.handler, []).extend(_item_rows(picture.kept, place, f"{due}{state}"))
    for _, place in queues.parked_since():
        rows = _item_rows(picture.kept, place, "parked behind a dead letter")
        blocks.setdefault(place.handler, []).extend(rows)
    return [Block(f"wait for {handler}", rows) for handler, rows in blocks.items()]


def _state(gates: HandlerGates, handler: str) -> str:
    state = "paused" if gates.paused(handler) is not None else gates.state(handler)
    return "" if state == "up" else f" (the handler is {state})"


def _item_rows(kept: Kept, place: Place, why: str) -> Iterable[Row]:
    for position, encoded in enumerate(kept.queues.items(place)):
        item = decode_item(encoded)
        attempts = f", {item.attempts} failed" if item.attempts else ""
        note = f"{why}{attempts}" if position == 0 else "behind it"
        yield _row(None, item.entry_id, item.callback, note)


def _letter_rows(kept: Kept) -> Iterable[Row]:
    for letter in kept.letters.values():
        parked = " (parked)" if letter.parked else ""
        yield Row(
            letter.failed_at_ms,
            letter.session_uuid or "",
            letter.event_name or "(not readable)",
            letter.sequence_number,
            f"{letter.handler or 'no handler'}{parked}: {letter.reason}",
        )
