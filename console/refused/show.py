"""`maskline refused show ID`: one refused callback, why it was refused, and what verification says of it now."""

import argparse
from collections.abc import Iterator
from typing import Any

from maskline.console.output import print_json, printable, shown_parameters, shown_value, utc_time
from maskline.console.redis_reader import RedisReader
from maskline.console.refused.kept_requests import KeptRequest, pages
from maskline.console.refused.request_view import shown_text, view_of
from maskline.console.selectors import RefusedSelection
from maskline.ingest.auth.verifier import AcceptedCallback
from maskline.ingest.refused.release import ReleaseVerifier
from maskline.schemas.errors import MasklineError
from maskline.schemas.privacy import redact
from maskline.schemas.settings import Settings


class NoSuchRefusedCallbackError(MasklineError):
    """No refused callback has the ID that the operator gave."""


async def run(reader: RedisReader, arguments: argparse.Namespace) -> int:
    """Print the refused callback; the exit code. `arguments`: `id` and `json`. Raises NoSuchRefusedCallbackError."""
    async for page in pages(reader, RefusedSelection((arguments.id,))):
        for kept in page:
            whole = describe(kept, reader.settings)
            if arguments.json:
                print_json(whole)
            else:
                for line in _lines(whole):
                    print(line)
            return 0
    raise NoSuchRefusedCallbackError(f"there is no refused callback {arguments.id[:60]!r}")


def describe(kept: KeptRequest, settings: Settings) -> dict[str, Any]:
    """Everything known about a refused callback, as a JSON object; no text in it holds a phone number.

    `now` is `good`, or the code for which `settings` refuse it; None where they have no token to verify it with.
    """
    request, view = kept.request, view_of(kept.request)
    verifier = ReleaseVerifier(settings)
    now = now_detail = None
    if settings.auth_tokens or settings.verify == "off":
        decision = verifier.verify(request)
        if isinstance(decision, AcceptedCallback):
            now = "good"
        else:
            now, now_detail = decision.code, redact(decision.detail)
    return {
        "id": kept.id,
        "received_at": utc_time(request.received_at_ms),
        "status": request.status,
        "reason": request.code,
        "detail": redact(request.detail),
        "now": now,
        "now_detail": now_detail,
        "client": request.client,
        "peer": request.peer,
        "method": view.method,
        "path": view.path,
        "checked_url": shown_text(verifier.checked_url(request)),
        "signature_headers": view.signature_headers,
        "headers": view.headers,
        "body_bytes": len(request.body),
        "parameters": None if view.parameters is None else shown_parameters(view.parameters),
    }


def _lines(whole: dict[str, Any]) -> Iterator[str]:
    for name, value in whole.items():
        if name == "signature_headers":
            yield f"{'signed with':16} {', '.join(value) or 'nothing: no header of Plivo has come'}"
        elif name not in ("headers", "parameters"):
            yield f"{name.replace('_', ' '):16} {shown_value(value)}"
    yield ""
    for name, value in whole["headers"].items():
        yield f"{printable(name)}: {printable(value)}"
    yield ""
    if whole["parameters"] is None:
        yield "the parameters cannot be read"
    for name, value in whole["parameters"] or ():
        yield f"  {printable(name)} = {printable(value)}"
