"""Says what follows an answer of Plivo's REST API to the deletion of a session. Pure.

The table is also in `docs/modules/expire.md`; a test holds the two together.
"""

from typing import Final, Literal

Outcome = Literal["done", "again", "refused"]
"""`done`: the session has ended. `again`: another try may succeed. `refused`: none can."""

OUTCOMES: Final[dict[int, tuple[Outcome, str]]] = {
    200: ("done", "Plivo has ended the session"),
    202: ("done", "Plivo has ended the session"),
    204: ("done", "Plivo has ended the session"),
    404: ("done", "the session has ended already"),
    410: ("done", "the session has ended already"),
    400: ("refused", "the request makes no sense to Plivo"),
    405: ("refused", "the request makes no sense to Plivo"),
    422: ("refused", "the request makes no sense to Plivo"),
    401: ("again", "the token is wrong: set MASKLINE_AUTH_TOKENS right"),
    403: ("again", "the account may not do this: have Plivo mend it"),
    429: ("again", "too many requests: after `Retry-After`"),
}
"""By status. The statuses of success are those that Plivo's own package takes for one (`plivo.rest.Client`)."""

OTHERWISE: Final[tuple[Outcome, str]] = ("again", "Plivo or something before it has a problem")
"""Any other status: 5xx, 408, 409, redirects, which are never followed."""


def outcome_of(status: int) -> tuple[Outcome, str]:
    """What follows an HTTP status, and why."""
    return OUTCOMES.get(status, OTHERWISE)
