"""Draws a session: a report in, lines out. Pure.

The lines fit 80 columns, but for commands to copy, and grow with a wider terminal. What is coloured is also said in
words, so that a pipe loses nothing.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from textwrap import wrap
from typing import Final

from rich.text import Text

from maskline.console.handler_status import span as rough_span
from maskline.console.output import counted, printable, shortened
from maskline.console.session.call_bars import bars_of
from maskline.console.session.event_words import numbers, span, words_of
from maskline.console.session.report import CallRow, EventRow, SessionReport
from maskline.console.session.waits import WaitRow

WAITED_MAX: Final = 1_000
"""Numbers of one gap that are looked at: a damaged number may be far ahead."""

REASON_SHOWN_CHARS: Final = 60

WIDTH_MIN: Final = 60
WIDTH_MAX: Final = 120
"""Wider bars tell no more."""

_ENDED_BY: Final = {
    "both_legs": "SessionPartiesHangup is missing",
    "next_call": "its end is missing: the next call began",
    "session_timeout": "its end is missing: the session expired",
    "silence": "its end is missing",
}


def draw(report: SessionReport, width: int) -> Iterator[Text]:
    """The lines of a session. `width`: of the terminal, in columns."""
    width = max(WIDTH_MIN, min(width, WIDTH_MAX))
    yield from _head(report)
    events: defaultdict[int | None, list[EventRow]] = defaultdict(list)
    for event in report.events:
        events[event.call].append(event)
    for call in report.calls:
        yield Text()
        yield from _call(call, events[call.call], width, report.now)
    if others := events[None]:
        yield Text()
        yield Text("of the session" if report.calls else "events", style="bold")
        yield from _events(others)
    yield from _waits(report, width)
    yield from _letters(report)


def _head(report: SessionReport) -> Iterator[Text]:
    yield Text.assemble("session ", (printable(report.session_uuid), "bold"))
    parties = (
        ("first party", report.first_party_number),
        ("second party", report.second_party_number),
        ("virtual number", report.virtual_number),
    )
    known = [f"{name} {number}" for name, number in parties if number is not None]
    if known:
        yield Text(" · ".join(known[:2]))
        yield from (Text(line) for line in known[2:])
    if report.first_at is not None and report.last_at is not None:
        yield Text(
            f"{report.first_at:%Y-%m-%d %H:%M:%S} to {_until(report.first_at, report.last_at)} UTC · "
            f"{counted(len(report.calls), 'call')} · {counted(len(report.events), 'event')}"
        )
    yield from _order(report)
    yield Text(_SOURCES[report.source].format(group=printable(report.group)), style="dim")
    yield from lines_of_gone(report)


_SOURCES: Final = {
    "timeline": "as the timeline of group {group} has it",
    "callbacks": "from the callbacks that are retained, put in order once more; group {group}",
    "timeline and callbacks": "as the timeline of group {group} has it, and from callbacks that it lacks",
}


def _order(report: SessionReport) -> Iterator[Text]:
    """What was not as it should be with the order, in a line; or that all was."""
    parts = []
    waited = {it for gap in report.waits if gap.kind == "gap" and not gap.own_lane for it in _waited(gap)}
    if missing := tuple(it for it in report.missing if it not in waited):
        parts.append(f"missing {numbers(missing)}")
    if report.late:
        parts.append(f"{report.late:,} late")
    if report.doubled:
        parts.append(f"{report.doubled:,} doubled")
    if report.unrecorded:
        parts.append(f"{counted(report.unrecorded, 'event')} more than the timeline has room for")
    if report.unreadable:
        yield _loud(
            f"OF THE TIMELINE {counted(report.unreadable, 'event').upper()} CANNOT BE READ: another release wrote them"
        )
    if report.order_error is not None:
        yield _loud(f"ITS ORDER CANNOT BE READ: {printable(report.order_error)}")
    if parts:
        yield Text(" · ".join(parts), style="yellow")
    elif report.events and not report.unreadable:
        yield Text("all in order", style="green")
    for handler, skipped in report.skipped.items():
        yield Text(f"{printable(handler)} never handled {numbers(skipped)}", style="yellow")


def lines_of_gone(report: SessionReport) -> Iterator[Text]:
    """What is known to be no longer retained of the session."""
    gone = report.gone
    parts = []
    if gone.numbers:
        parts.append(f"of number {numbers(gone.numbers)}")
    if gone.recording_numbers:
        parts.append(f"of recordings {numbers(gone.recording_numbers)}")
    if gone.others:
        parts.append(f"{gone.others:,} without a number")
    if parts:
        yield _loud(f"NO LONGER RETAINED: callbacks {', '.join(parts)}")
    elif gone.earlier:
        yield _loud("NO LONGER RETAINED: what came first" if report.callbacks else "NO CALLBACK IS RETAINED")
    if gone.beyond:
        yield _loud(f"LEFT OUT: {counted(gone.beyond, 'more callback')}, which are too many to show")


def _loud(line: str) -> Text:
    return Text(line, style="bold yellow")


def _call(call: CallRow, events: list[EventRow], width: int, now: datetime | None) -> Iterator[Text]:
    yield Text(_call_title(call), style="bold")
    ends = _ENDED_BY.get(call.ended_by or "")
    if ends is not None:
        yield Text(f"  {ends}", style="yellow")
    yield from bars_of(call, width, now if call.ended_by is None else None)
    yield from _legs(call)
    yield Text()
    yield from _events(events)


def _call_title(call: CallRow) -> str:
    parts = [f"call {call.call}"]
    if call.answered:
        parts.append("answered")
    elif call.ended_by is None:
        parts.append("under way")
    else:
        parts.append("not answered")
    if call.duration_s is not None:
        parts.append(f"duration {span(call.duration_s)}")
    if call.billed_duration_s is not None:
        parts.append(f"billed {span(call.billed_duration_s)}")
    if call.amount is not None:
        parts.append(f"amount {call.amount}")
    return " · ".join(parts)


def _legs(call: CallRow) -> Iterator[Text]:
    """What is worth a word of the parties, and of their PINs."""
    for side, leg in (("first party", call.first_party), ("second party", call.second_party)):
        facts = []
        if leg.outcome is not None and leg.outcome != "answered":
            facts.append("not reached" if leg.outcome == "failed" else "did not answer")
        if leg.ring_s is not None:
            facts.append(f"rang {span(leg.ring_s)}")
        if leg.talk_s is not None:
            facts.append(f"on the line {span(leg.talk_s)}")
        if leg.hangup_cause is not None:
            code = "" if leg.hangup_cause_code is None else f" ({leg.hangup_cause_code})"
            facts.append(f"{printable(leg.hangup_cause)}{code}")
        if facts:
            yield Text(f"  {side:13} {', '.join(facts)}")
    if call.pin_failures:
        yield Text(f"  {'PIN':13} {counted(call.pin_failures, 'wrong PIN')}", style="yellow")
    for recording in call.recordings:
        length = "" if recording.duration_s is None else f", {span(recording.duration_s)}"
        name = "" if recording.recording_uuid is None else f" {printable(recording.recording_uuid)}"
        yield Text(f"  {'recording':13} {recording.status}{length}{name}")


def _events(events: list[EventRow]) -> Iterator[Text]:
    last: datetime | None = None
    for event in events:
        if event.missing:
            yield from _missing(event, events)
        number = "" if event.sequence_number is None else str(event.sequence_number)
        if number and event.own_lane:
            number = f"r{number}"
        if last is not None and event.at is not None and event.at.date() != last.date():
            yield Text(f"  {event.at:%Y-%m-%d}", style="dim")
        last = event.at or last
        clock = "" if event.at is None else f"{event.at:%H:%M:%S}"
        line = Text.assemble("  ", (f"{clock:8}", "dim"), f"  {number:>5}  ", words_of(event))
        for flag, style in _flags(event):
            line.append("  ")
            line.append(flag, style=style)
        yield line


def _missing(event: EventRow, events: list[EventRow]) -> Iterator[Text]:
    """What was given up just before an event."""
    came = {it.sequence_number for it in events if (it.run, it.own_lane) == (event.run, event.own_lane)}
    lane = "r" if event.own_lane else ""
    for words, style, those in (
        ("given up, and came late", "yellow", [it for it in event.missing if it in came]),
        ("did not arrive", "red", [it for it in event.missing if it not in came]),
    ):
        if those:
            yield Text(f"  {'':8}  {lane + numbers(tuple(those)):>5}  {words}", style=style)


def _flags(event: EventRow) -> Iterator[tuple[str, str]]:
    if event.order == "late":
        yield "late", "yellow"
    if event.copies:
        yield f"sent {event.copies + 1} times", "yellow"
    if event.replayed:
        yield "replayed", "cyan"
    if event.state != "handled":
        yield event.state, "magenta"
    if event.problems:
        yield f"unreadable: {', '.join(map(printable, event.problems))}", "yellow"


def _waits(report: SessionReport, width: int) -> Iterator[Text]:
    if not report.waits:
        return
    yield Text()
    yield Text("waits now", style="bold")
    for wait in report.waits:
        words = _wait_words(wait, report)
        for line in wrap(
            words, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        ):
            yield Text(line, style="magenta")
        if wait.command is not None:
            yield Text(f"    {printable(wait.command)}")


def _wait_words(wait: WaitRow, report: SessionReport) -> str:
    events, now = counted(wait.events, "event"), report.now
    verb = "waits" if wait.events == 1 else "wait"
    since = "" if wait.since is None or now is None else f" for {rough_span(_seconds(wait.since, now))}"
    handler = "" if wait.handler is None else printable(wait.handler)
    match wait.kind:
        case "gap":
            waited = _waited(wait)
            lane = " of the recordings" if wait.own_lane else ""
            noun = "number" if len(waited) == 1 else "numbers"
            return f"{events} {verb} for {noun} {numbers(waited)}{lane}, {_given_up(wait.until, now)}"
        case "under_way":
            return f"{events} under way{since}"
        case "unread":
            return f"{events} {verb} to be read by a worker of {printable(report.group)}{since}"
        case "parked":
            letter = "a dead letter" if wait.dead_letter is None else f"dead letter {wait.dead_letter}"
            return f"{events} {verb} behind {letter} of {handler}{since}"
        case _:
            paused = ", which is paused" if wait.kind == "paused" else ""
            tried = f", tried {counted(wait.attempts, 'time')}" if wait.attempts else ""
            return f"{events} {verb} for {handler}{paused}{since}{tried}{_next_try(wait, now)}"


def _waited(gap: WaitRow) -> tuple[int, ...]:
    """The numbers that are waited for, WAITED_MAX at most."""
    first = gap.sequence_number or 0
    return tuple(range(first, min(gap.last_sequence_number or first, first + WAITED_MAX - 1) + 1))


def _given_up(until: datetime | None, now: datetime | None) -> str:
    if until is None or now is None:
        return "until it is given up"
    left = _seconds(now, until)
    return f"given up in {rough_span(left)}" if left > 0 else f"due to be given up since {rough_span(-left)}"


def _next_try(wait: WaitRow, now: datetime | None) -> str:
    if wait.until is None or now is None or wait.kind == "paused":
        return ""
    left = _seconds(now, wait.until)
    return f", next try in {rough_span(left)}" if left > 0 else ", next try is due"


def _letters(report: SessionReport) -> Iterator[Text]:
    if not report.dead_letters:
        return
    yield Text()
    yield Text("dead letters", style="bold")
    for handler, letters in groupby(report.dead_letters, key=lambda it: it.handler):
        yield Text(f"  {'reached no handler' if handler is None else printable(handler)}")
        for letter in letters:
            number = "" if letter.sequence_number is None else f" {letter.sequence_number}"
            event = printable(letter.event_name or "unreadable")
            yield Text(f"    {event}{number}: {shortened(letter.reason, REASON_SHOWN_CHARS)}")
            group = "" if letter.group == report.group else f", of group {printable(letter.group)}"
            yield Text(f"      maskline dead show {letter.id}{group}")
    if report.dead_letters_beyond:
        yield _loud(f"  LEFT OUT: {counted(report.dead_letters_beyond, 'more dead letter')}")


def _until(first: datetime, last: datetime) -> str:
    return f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()
