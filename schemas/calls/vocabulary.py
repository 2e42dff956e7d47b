"""What each event says about a call: which leg it concerns, and how far that has come. Pure.

Both vocabularies of Plivo's pages stand side by side: an event of either says the same. An event without a row (one
that Plivo does not document) belongs to the call in which it stands, and changes nothing in it.
"""

from typing import Final, Literal, NamedTuple

Side = Literal["first", "second"]

INITIATED, RINGING, ANSWERED, ENDED = 1, 2, 3, 4
"""How far a leg has come. 0: nothing is known of it."""


class Step(NamedTuple):
    """A leg has come so far."""

    side: Side
    stage: int


STEPS: Final[dict[str, Step]] = {
    "SessionFirstPartyInitiated": Step("first", INITIATED),
    "SessionFirstPartyRinging": Step("first", RINGING),
    "SessionFirstPartyAnswer": Step("first", ANSWERED),
    "SessionFirstPartyHangup": Step("first", ENDED),
    "SessionFirstPartyComplete": Step("first", ENDED),
    "SessionFirstPartyFailed": Step("first", ENDED),
    "SessionSecondPartyInitiated": Step("second", INITIATED),
    "SessionSecondPartyRing": Step("second", RINGING),
    "SessionSecondPartyAnswer": Step("second", ANSWERED),
    "SessionSecondPartyHangup": Step("second", ENDED),
    "SessionSecondPartyComplete": Step("second", ENDED),
    "SessionSecondPartyFailed": Step("second", ENDED),
}
"""EventName to what it says of a leg."""

FAILED: Final = frozenset({"SessionFirstPartyFailed", "SessionSecondPartyFailed"})

LANDED: Final = "SessionVirtualNumberAnswer"
"""A party has called the virtual number: that party's leg is answered."""
DONE: Final = "SessionPartiesHangup"
"""The call is done."""
PIN: Final = "SessionPinAuthenticationStatus"
REPLACED: Final = "SessionVirtualNumberReplaced"
UPDATED: Final = "SessionParamUpdate"
TIMED_OUT: Final = "SessionTimeout"

OF_SESSION: Final = frozenset({PIN, REPLACED, UPDATED, TIMED_OUT})
"""Events of the session, not of a call's legs."""

SILENCE: Final = "(silence)"
"""No event of Plivo's: nothing came of the session for MASKLINE_CALL_SILENCE_S. Kept as an observation, so that the
calls stay a function of what is kept."""
LEGS_SILENCE: Final = "(silence after the legs)"
"""The same for a shorter time, after each party of a call had left."""

SILENCES: Final = frozenset({SILENCE, LEGS_SILENCE})
