"""What `maskline trigger` says of its callback: as lines, and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from maskline.console import dev_handler
from maskline.console.output import counted, printable, shortened
from maskline.console.trigger.follow import Followed
from maskline.console.trigger.outcome import HandlerOutcome, Outcome
from maskline.schemas.privacy import redact

NUMBERS_SHOWN_MAX: Final = 5
WHY_SHOWN_CHARS: Final = 160

_WORDS: Final[dict[Outcome, str]] = {
    "not_seen": "not in Redis: the node may have spooled it, or use another Redis or namespace",
    "no_worker": "no worker of the group is alive: the next one that starts handles it",
    "under_way": "not handled yet: no worker has taken it on, or its handlers have not ended",
    "duplicate": "a duplicate: the same callback has come before, so no handler gets it again",
    "no_handler": "no handler of the group takes this event",
}


class TriggerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the callback; `--json` prints these fields."""

    event_name: str
    session_uuid: str
    sequence_number: str | None
    """As sent; null if none was."""
    url: str
    parameters: list[list[str]]
    """All of them, with tokens in place of phone numbers."""
    status: int | None
    """The answer's; null if nobody answered."""
    answer_ms: float | None
    error: str | None = None
    """Why it was not taken: what the node answered, or why it did not."""
    outcome: Outcome
    """`handled`: the exit code is 0."""
    entry_id: str | None = None
    order: str | None = None
    """`in_order`, `after_gap`, `late` or `unsequenced`; null if it is a duplicate, or not known."""
    missing: list[int] = []
    """The numbers that it waits for, or that were given up just before it."""
    held_s: float | None = None
    """For how long it goes on waiting for them."""
    handlers: Sequence[HandlerOutcome] = ()


def with_followed(report: TriggerReport, followed: Followed) -> TriggerReport:
    """The report, with how far the callback has come."""
    place, facts = followed.place, followed.facts
    outcome, handlers = followed.judgement
    until_ms = place.held_until_ms
    held = outcome == "held" and until_ms is not None and facts is not None
    return msgspec.structs.replace(
        report,
        outcome=outcome,
        entry_id=followed.entry_id,
        order=place.order if followed.entry_id is not None else None,
        missing=list(place.missing),
        held_s=(until_ms - facts.now_ms) / 1000
        if held and until_ms is not None and facts is not None
        else None,
        handlers=handlers,
    )


def lines(report: TriggerReport) -> Iterator[str]:
    """The report as lines for a terminal."""
    number = f"  number {printable(report.sequence_number)}" if report.sequence_number else ""
    yield f"{printable(report.event_name)}{number}  session {printable(redact(report.session_uuid))}"
    if report.status is None:
        yield f"nobody answered: {report.error}"
        return
    answered = f"answered {report.status} in {report.answer_ms:.1f} ms"
    yield answered if report.error is None else f"{answered}: {report.error}"
    if report.outcome not in ("refused", "answered"):
        yield outcome_line(report)
        yield from _handler_lines(report.handlers)


def progress_line(report: TriggerReport) -> str:
    """What is waited for."""
    return ("in a retry queue" if report.outcome == "waiting" else outcome_line(report)) + " …"


def outcome_line(report: TriggerReport) -> str:
    """What became of it, in one line."""
    if report.outcome == "held":
        return f"held: waits for {_numbers(report.missing)}, {report.held_s:.1f} s more"
    words = _WORDS.get(report.outcome)
    if words is not None:
        return words
    order = {"in_order": "in order", "after_gap": "after a gap"}.get(report.order or "", report.order or "")
    return f"{order}, {_numbers(report.missing)} missing" if report.missing else order


def _handler_lines(handlers: Sequence[HandlerOutcome]) -> Iterator[str]:
    width = max((len(one.outcome) for one in handlers), default=0)
    for one in handlers:
        more = _more(one)
        words = one.outcome.replace("_", " ")
        yield f"  {words:{width}}  {printable(one.name)}" + (f"  {more}" if more else "")
        if one.why:
            yield f"  {'':{width}}  {shortened(redact(one.why), WHY_SHOWN_CHARS)}"
        if one.dead_letter:
            yield f"  {'':{width}}  maskline dead show {one.dead_letter}"
    if [one.name for one in handlers] == [dev_handler.NAME]:
        yield "no handler of yours takes this event: it is only shown by maskline dev"


def _more(one: HandlerOutcome) -> str:
    parts = [f"after {counted(one.attempts, 'failed attempt')}"] if one.attempts else []
    if one.next_try_s is not None:
        parts.append(f"next try in {one.next_try_s:.1f} s")
    return ", ".join(parts)


def _numbers(missing: Sequence[int]) -> str:
    shown = ", ".join(map(str, missing[:NUMBERS_SHOWN_MAX]))
    more = len(missing) - NUMBERS_SHOWN_MAX
    noun = "number" if len(missing) == 1 else "numbers"
    return f"{noun} {shown}" + (f" and {more:,} more" if more > 0 else "")
