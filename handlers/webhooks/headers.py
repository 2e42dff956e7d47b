"""The headers of a webhook: those of Standard Webhooks, and `maskline-…` for the event's place in its session. Pure.

Only `webhook-id`, `webhook-timestamp` and the body are signed. The `maskline-…` headers are for routing and logs; the
same facts stand in the body's `delivery`, where the signature covers them.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from standardwebhooks import Webhook

from maskline import Context

USER_AGENT: Final = "maskline"
VALUE_CHARS_MAX: Final = 256
"""Of a value that Plivo chose, such as a SessionUUID: longer ones are headers by their hash."""
LISTED_MAX: Final = 64
"""Numbers in one header; the body has all of them."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9:_-]+")


def message_headers(
    ctx: Context, event_name: str, body: str, signers: Sequence[Webhook], now: datetime
) -> dict[str, str]:
    """The headers of a request, those of `schemas.forward_message.HEADERS`. `now`: the present, in UTC."""
    message_id = header_text(ctx.idempotency_key)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(message_id, now, body) for signer in signers),
        "maskline-event": header_text(event_name),
        "maskline-session": header_text(ctx.session_uuid),
        "maskline-run": str(ctx.run),
        "maskline-order": ctx.order,
        "maskline-attempt": str(ctx.attempt),
    }
    if ctx.sequence_number is not None:
        headers["maskline-sequence"] = str(ctx.sequence_number)
    if ctx.missing:
        headers["maskline-missing"] = ",".join(map(str, ctx.missing[:LISTED_MAX]))
    if ctx.skipped:
        headers["maskline-skipped"] = ",".join(map(str, ctx.skipped[-LISTED_MAX:]))
    if ctx.replayed:
        headers["maskline-replayed"] = "true"
    return headers


def header_text(text: str) -> str:
    """A text that Plivo chose as it may stand in a header: other texts have other values.

    What is no ASCII letter, digit, `:`, `_` or `-` is percent-encoded: a full stop too, which separates the parts of
    what Standard Webhooks signs. A longer text than VALUE_CHARS_MAX is `sha256:` and its hash.
    """
    if len(text) > VALUE_CHARS_MAX:
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    encoded = _UNSAFE.sub(_percent_encoded, text)
    if len(encoded) > VALUE_CHARS_MAX:
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return encoded


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))
