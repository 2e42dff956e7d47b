"""Which known name a misspelled one may have meant. Pure."""

import difflib
from collections.abc import Iterable
from typing import Final

CLOSE_NAMES_MAX: Final = 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest known names, ready to follow a message; empty if none is near."""
    # Case and separators are what people get wrong: sessiontimeout and session_timeout mean SessionTimeout.
    spelled = {_folded(other): other for other in known}
    if _folded(name) in spelled:
        return f"; did you mean {spelled[_folded(name)]}?"
    close = difflib.get_close_matches(_folded(name), spelled, CLOSE_NAMES_MAX, cutoff=0.7)
    return f"; did you mean {' or '.join(spelled[other] for other in close)}?" if close else ""


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
