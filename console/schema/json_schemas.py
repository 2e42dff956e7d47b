"""JSON Schemas (draft 2020-12) of what maskline makes, derived from the structs themselves. Pure."""

from typing import Any, Final, get_args

import msgspec

from maskline.schemas.call_summary import CallSummary
from maskline.schemas.events import AnyEvent
from maskline.schemas.forward_message import CallSummaryMessage, ForwardMessage

JsonObject = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def events_schema() -> JsonObject:
    """Plivo's events and `UnknownEvent`, as `msgspec.json.encode(event)` writes one: attributes by Plivo's names."""
    return _document("An event of Plivo's Number Masking", *get_args(AnyEvent))


def call_summary_schema() -> JsonObject:
    """The event CallSummary, as `maskline.handlers.call_summary` emits it."""
    return _document("The summary of a call", CallSummary)


def forward_schema() -> JsonObject:
    """The body of a webhook of `maskline.handlers.forward`."""
    return _document("A forwarded event or call summary", ForwardMessage, CallSummaryMessage)


def _document(title: str, *types: type) -> JsonObject:
    references, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    body = references[0] if len(references) == 1 else {"anyOf": list(references)}
    return {"$schema": DIALECT, "title": title, **body, "$defs": definitions}
