"""An AsyncAPI 3 document of `maskline.handlers.forward`: the webhooks that an endpoint receives. Pure."""

from typing import Any, Final

import msgspec

from maskline.console.schema.json_schemas import JsonObject
from maskline.schemas.forward_message import HEADERS, CallSummaryMessage, ForwardMessage

ALWAYS_SENT: Final = (
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "maskline-event",
    "maskline-session",
    "maskline-run",
    "maskline-order",
    "maskline-attempt",
)
"""Headers that every webhook has; the others have nothing to say where they are absent."""


def asyncapi_document() -> JsonObject:
    """The whole document, as <https://www.asyncapi.com/docs/reference/specification/v3.0.0> defines it."""
    (event, summary), schemas = msgspec.json.schema_components(
        [ForwardMessage, CallSummaryMessage], ref_template="#/components/schemas/{name}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "maskline forward",
            "version": "1.0.0",
            "description": "Events of Plivo's Number Masking, delivered to an HTTP endpoint in the order of each "
            "session, and signed by Standard Webhooks.",
            "externalDocs": {
                "description": "How signatures are verified",
                "url": "https://www.standardwebhooks.com/",
            },
        },
        "defaultContentType": "application/json",
        "channels": {
            "endpoint": {
                "address": None,
                "description": "The `url` of an `[[endpoint]]` in the file that MASKLINE_FORWARD_CONFIG names.",
                "messages": {
                    name: {"$ref": f"#/components/messages/{name}"} for name in ("event", "callSummary")
                },
            }
        },
        "operations": {
            "deliver": {
                "action": "send",
                "title": "Deliver an event",
                "description": "At least once: `webhook-id` is the same at every delivery of one event. A session's "
                "next event is delivered once this one has been answered with 2xx, or was given up.",
                "channel": {"$ref": "#/channels/endpoint"},
                "messages": [
                    {"$ref": f"#/channels/endpoint/messages/{name}"} for name in ("event", "callSummary")
                ],
                "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            }
        },
        "components": {
            "messages": {
                "event": _message("event", "An event", event),
                "callSummary": _message("callSummary", "The summary of a call that is over", summary),
            },
            "schemas": schemas,
        },
    }


def _message(name: str, title: str, payload: JsonObject) -> JsonObject:
    return {
        "name": name,
        "title": title,
        "contentType": "application/json",
        "headers": _headers(),
        "payload": payload,
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": meaning} for name, meaning in HEADERS.items()},
        "required": list(ALWAYS_SENT),
    }
