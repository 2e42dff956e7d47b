"""When is a call over? The table, and the function that goes by it. Pure.

A call stays over: nothing that arrives later opens it again, it only changes what is known of it.
"""

from typing import Final, NamedTuple

from maskline.schemas.call_summary import EndedBy


class CallEnd(NamedTuple):
    """One way in which a call is known to be over; `docs/modules/call-summary.md` shows the same rows."""

    ended_by: EndedBy
    when: str
    why: str


CALL_ENDS: Final[tuple[CallEnd, ...]] = (
    CallEnd(
        "parties_hangup",
        "its `SessionPartiesHangup` arrived",
        "Plivo's own word that the call is done, with the total charge",
    ),
    CallEnd(
        "both_legs",
        "each party that took part has left (`…Hangup`, `…Complete`, `…Failed`), and then the next call began, the "
        "session timed out, or nothing came for 90 s",
        "`SessionPartiesHangup` follows the last leg, so it is awaited for as long as a gap may hold it back",
    ),
    CallEnd(
        "next_call",
        "an event of a later call arrived",
        "the calls of a session do not overlap",
    ),
    CallEnd(
        "session_timeout",
        "`SessionTimeout` arrived",
        "no later call can begin, and what the order still held came before it",
    ),
    CallEnd(
        "silence",
        "nothing came of its session for `MASKLINE_CALL_SILENCE_S`",
        "its end was lost, or was sent elsewhere",
    ),
)
"""The first row that holds counts."""

LEGS_SILENCE_MS: Final = 90_000
"""How long a call's SessionPartiesHangup is awaited once each party has left: more than the gap timeout and the wait
for spooled callbacks together, by their defaults (65 s)."""


class EndSigns(NamedTuple):
    """What tells that a call is over."""

    done: bool
    """SessionPartiesHangup arrived."""
    legs_over: bool
    """Each party that took part has left."""
    later_call: bool
    timed_out: bool
    silence: bool
    """After one of its events nothing came for MASKLINE_CALL_SILENCE_S."""
    legs_silence: bool
    """After a party had left, nothing came for LEGS_SILENCE_MS."""


def ended_by(signs: EndSigns) -> EndedBy | None:
    """What showed that the call is over, by the table; None while it is not."""
    if signs.done:
        return "parties_hangup"
    followed = signs.later_call or signs.timed_out or signs.silence or signs.legs_silence
    if signs.legs_silence or (signs.legs_over and followed):
        return "both_legs"
    if signs.later_call:
        return "next_call"
    if signs.timed_out:
        return "session_timeout"
    return "silence" if signs.silence else None
