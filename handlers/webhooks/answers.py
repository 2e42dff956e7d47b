"""What follows an endpoint's answer: done, another try, or the dead letters. Pure.

The table STATUSES is all of it; docs/modules/forward.md shows the same. Nobody but the receiver knows whether another
try can help, and the status is how it says so. A status that does not say so is tried again: an event that is tried for
a day may still be delivered, one in the dead letters needs a person.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from maskline.schemas.answer_text import answer_text
from maskline.schemas.privacy import redact
from maskline.schemas.retry_after import retry_after_ms

Outcome = Literal["done", "again", "give_up"]

PERMANENT: Final = (400, 401, 403, 404, 410, 413, 422)


class StatusRule(NamedTuple):
    """A row of the table."""

    statuses: str
    """As the docs show them."""
    matches: tuple[range, ...]
    outcome: Outcome
    why: str


STATUSES: Final = (
    StatusRule("2xx", (range(200, 300),), "done", "the receiver has taken it"),
    StatusRule(
        "3xx",
        (range(300, 400),),
        "give_up",
        "redirects are not followed: enter the URL that the receiver has now",
    ),
    StatusRule(
        ", ".join(map(str, PERMANENT)),
        tuple(range(status, status + 1) for status in PERMANENT),
        "give_up",
        "the receiver says that the request is wrong, and the next one would be the same",
    ),
    StatusRule(
        "408, 429, 5xx",
        (range(408, 409), range(429, 430), range(500, 600)),
        "again",
        "the receiver cannot take it now; when `Retry-After` says, or by the backoff",
    ),
    StatusRule("any other", (range(1000),), "again", "it does not say whether another try can help"),
)
"""What follows a status: the first row that matches."""


class Answer(NamedTuple):
    """What of an endpoint's answer matters."""

    status: int
    retry_after: str | None
    """The header, as sent."""
    location: str | None
    """The header, as sent."""
    start: bytes
    """The first bytes of the body."""


def outcome_of(status: int) -> Outcome:
    """What follows a status."""
    return next(rule.outcome for rule in STATUSES if any(status in span for span in rule.matches))


def wait_ms(answer: Answer, now: datetime) -> int | None:
    """How many milliseconds the endpoint asks to wait; None if it does not say. `now`: with its time zone."""
    return retry_after_ms(answer.retry_after, now)


def problem_text(endpoint: str, answer: Answer, hidden: Iterable[str]) -> str:
    """The answer in one line for dead letters and logs: its status, and how its body begins.

    `hidden`: texts to leave out, the longest first. What looks like a phone number is a token. The body stands in
    quotes, so that letters of one status are one group (`dead groups`).
    """
    text = f"{endpoint} answered {answer.status}"
    if answer.location is not None:
        text += f", a redirect to {_host(answer.location)}"
    shown = answer_text(answer.start, hidden).replace('"', "'")
    return f'{text}: "{shown}"' if shown else text


def _host(location: str) -> str:
    """The host of a redirect: the rest of its URL may be a secret."""
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = None
    return redact(host) if host and host.isprintable() else "the same host"
