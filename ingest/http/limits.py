"""The limits on one connection, and the refusals that a connection itself decides.

| limit | on | beyond it |
| --- | --- | --- |
| ServerContext.idle_timeout_s (MASKLINE_KEEPALIVE_S) | an idle connection, from its last answer | it is closed |
| HEAD_TIMEOUT_S | an incomplete head, from its first byte | 408 |
| READ_TIMEOUT_S | an incomplete body, from the head's end | 408 |
| HEAD_MAX_BYTES, MASKLINE_MAX_BODY_BYTES (ingest.parser) | a head, a body | 400, 413 |
| WAITING_MAX_BYTES | bytes that wait behind a pending request | nothing is read from the socket |
| TURN_MAX | requests taken in one turn of the loop | the others are taken in the next turn |
| WRITE_TIMEOUT_S | answers that the client does not read | it is cut off |
| LINGER_S | a connection whose our side is closed | it is closed |
"""

from typing import Final

from maskline.ingest.refusal import Refusal

HEAD_TIMEOUT_S: Final = 10.0
"""A head is a kilobyte, sent in one go; ten seconds suffice on the slowest link."""
READ_TIMEOUT_S: Final = 10.0
"""The same for a body."""
WAITING_MAX_BYTES: Final = 65_536
TURN_MAX: Final = 64
"""Refusals do not wait for Redis: a flood of them on one connection must not starve the others."""
WRITE_TIMEOUT_S: Final = 30.0
LINGER_S: Final = 2.0
"""Some round trips, so that the client sees the answer rather than a reset, and what it wrote meanwhile arrives."""

CLIENT_GONE: Final = Refusal(400, "client_gone", "the connection ended before the body did")
HEAD_TIMED_OUT: Final = Refusal(
    408, "head_timeout", f"the head that had begun did not end within {HEAD_TIMEOUT_S:g} s"
)
READ_TIMED_OUT: Final = Refusal(408, "read_timeout", f"the body did not arrive within {READ_TIMEOUT_S:g} s")
EXPECTATION_FAILED: Final = Refusal(417, "expectation_failed", "only 100-continue can be expected")


def not_stored(code: str) -> Refusal:
    """The refusal of a callback that neither Redis nor the spool has: Plivo has to send it again.

    `code`: of the NotStoredError.
    """
    return Refusal(503, code, "the callback could not be kept, send it again")
