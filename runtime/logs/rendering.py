"""Renders a log line as JSON or for a console, and has the steps before that (structlog processors).

No text from outside may forge a line or control the terminal. If a value makes a step raise, the line says what could
not be rendered, and the work goes on.
"""

import json
from collections.abc import MutableMapping
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import Processor

from maskline.runtime.logs.redaction import as_text, redact_value

EventDict = MutableMapping[str, Any]

# C0 and C1 but newline and tab, and the two separators that some viewers break lines at.
_CONTROL: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
} | {0x2028: "\\u2028", 0x2029: "\\u2029"}
_BREAKS: Final = _CONTROL | {ord("\n"): "\\n", ord("\t"): "\\t"}


def add_logger_name(logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Add the name that the logger was made with, as `logger`."""
    if logger.name is not None:
        event_dict["logger"] = logger.name
    return event_dict


def redact_fields(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Make every field fit for a log."""
    try:
        return {name: redact_value(name, value) for name, value in event_dict.items()}
    except Exception as error:  # noqa: BLE001 - a mapping or a name that misbehaves: the line goes, the work goes on
        return {"event": "log line not rendered", "problem": type(error).__name__}


def escape_control_characters(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Escape control characters, so that no text from outside forges a line or controls the terminal. Tracebacks keep
    their line ends.
    """
    for name, value in event_dict.items():
        if isinstance(value, str):
            event_dict[name] = value.translate(_CONTROL if name in ("exception", "stack") else _BREAKS)
    return event_dict


def console_renderer(*, colors: bool) -> Processor:
    """Renders a line for a person at a terminal."""
    # The other formatters show local variables, and with them phone numbers: not even as what is left if the step
    # that makes text of an exception were lost.
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


_FIRST: Final = ("timestamp", "level", "logger", "event")
"""The reader's eye wants these first."""
_encode_json: Final = msgspec.json.Encoder(enc_hook=as_text).encode


def render_json(_logger: Any, _method: str, event_dict: EventDict) -> bytes:
    """Render a line as JSON in UTF-8, with time, level, logger and event first."""
    ordered = {**{name: event_dict.pop(name) for name in _FIRST if name in event_dict}, **event_dict}
    try:
        return _encode_json(ordered)
    except (ValueError, OverflowError, msgspec.MsgspecError):
        # Lone surrogates (a file name that is no UTF-8) and integers beyond 64 bits.
        return json.dumps(ordered, default=as_text).encode()
