"""Refusals: why a request is not taken, as an answer to its sender, and a hint for the operator. Pure.

The refusals themselves are constants of the modules that decide: `ingest.parser` for HTTP, `ingest.auth.verifier` for
callbacks, `ingest.http` for time limits and for callbacks that nothing could store.
"""

from typing import NamedTuple


class Refusal(NamedTuple):
    """A request that is not taken, as it is answered, counted and logged."""

    status: int
    """The HTTP status of the answer."""
    code: str
    """A stable word: `error` in the answer, `reason` in metrics and log."""
    detail: str
    """One sentence for the sender: what is wrong, or what to do."""
    hint: str = ""
    """What the operator can do, for the log; only where this refusal knows more than others of its code."""
