"""Says in a few words what an event tells: the table of names, and the details that belong to it. Pure."""

from typing import Final

from maskline.console.output import printable, shortened
from maskline.console.session.report import EventRow

WORDS: Final = {
    "SessionFirstPartyInitiated": "first party is called",
    "SessionFirstPartyRinging": "first party's phone rings",
    "SessionFirstPartyAnswer": "first party answers",
    "SessionFirstPartyHangup": "first party hangs up",
    "SessionFirstPartyComplete": "first party is off the line",
    "SessionFirstPartyFailed": "first party is not reached",
    "SessionSecondPartyInitiated": "second party is called",
    "SessionSecondPartyRing": "second party's phone rings",
    "SessionSecondPartyAnswer": "second party answers",
    "SessionSecondPartyHangup": "second party hangs up",
    "SessionSecondPartyComplete": "second party is off the line",
    "SessionSecondPartyFailed": "second party is not reached",
    "SessionVirtualNumberAnswer": "a call lands on the virtual number",
    "SessionPartiesHangup": "the call is over",
    "SessionVirtualNumberReplaced": "the virtual number was replaced",
    "SessionParamUpdate": "parameters of the session changed",
    "SessionTimeout": "the session expires",
    "SessionRecordingInitiated": "recording begins",
    "SessionRecordingCompleted": "recording is done",
    "SessionRecordingFailed": "recording could not begin",
}
"""Both vocabularies of Plivo's. An event that is not here is shown by its name."""

PINS: Final = {"success": "PIN is right", "failed": "PIN is wrong", "authorizedcaller": "caller needs no PIN"}

PARTS_MAX: Final = 8

NAME_SHOWN_CHARS: Final = 40
CAUSE_SHOWN_CHARS: Final = 30
"""Of Plivo's names and causes, all are shorter."""

_ENDS: Final = ("Hangup", "Complete", "Failed")


def words_of(event: EventRow) -> str:
    """What an event tells."""
    if event.event_name == "SessionPinAuthenticationStatus":
        return _pin(event)
    words = WORDS.get(event.event_name)
    if words is None:
        return shortened(event.event_name, NAME_SHOWN_CHARS)
    details = []
    if event.event_name.endswith(_ENDS) and event.hangup_cause is not None:
        details.append(shortened(event.hangup_cause, CAUSE_SHOWN_CHARS))
    if event.event_name == "SessionPartiesHangup" and event.amount is not None:
        details.append(f"amount {printable(event.amount)}")
    if event.event_name == "SessionRecordingCompleted" and event.duration_s is not None:
        details.append(span(event.duration_s))
    return f"{words}: {', '.join(details)}" if details else words


def span(seconds: int) -> str:
    """A time span to the second: `12 s`, `3 min 12 s`, `1 h 3 min`."""
    minutes, rest = divmod(seconds, 60)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def numbers(values: tuple[int, ...]) -> str:
    """Numbers as a person lists them: `4`, `4, 6`, `4 to 9, 12`; after PARTS_MAX of these how many more there are."""
    parts: list[str] = []
    ordered = sorted(set(values))
    while ordered:
        if len(parts) >= PARTS_MAX:
            return f"{', '.join(parts)} and {len(ordered):,} more"
        last = 0
        while last + 1 < len(ordered) and ordered[last + 1] == ordered[last] + 1:
            last += 1
        parts += [str(it) for it in ordered[: last + 1]] if last < 2 else [f"{ordered[0]} to {ordered[last]}"]
        ordered = ordered[last + 1 :]
    return ", ".join(parts)


def _pin(event: EventRow) -> str:
    status = event.pin_status or ""
    words = PINS.get(status.lower(), f"PIN: {printable(status)}" if status else "PIN")
    wrong = event.pin_counter if status.lower() == "failed" else None
    return f"{words}, {wrong} so far" if wrong and wrong > 1 else words
