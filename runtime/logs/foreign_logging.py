"""Hides known numbers in logging that a handler module sets up itself. Its format and its destination stay.

Configurable parts may be configured anew at any time, and cannot be trusted to hide anything. So this patches functions
that no configuration replaces:

| what | patched at |
| --- | --- |
| logging: the record, before handlers get it | `Logger.callHandlers` |
| logging: the text that handlers make of it | `Handler.format`, `Formatter.formatException` |
| structlog: what its processors make of an event | `BoundLoggerBase._process_event` |
| pprint: the text as a whole, which it would write in lines, and break numbers | `PrettyPrinter.pprint` |
| print, warnings, tracebacks, sys.stdout and sys.stderr | the streams (runtime.logs.line_writer) |

Out of reach: files and sockets that a module opens and writes to by itself, and writes to a descriptor (`os.write`).
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pprint import PrettyPrinter
from typing import Any, Final

from structlog import BoundLoggerBase

from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) - {"name"}
"""The attributes of every record; the rest is the user's `extra`."""


def install(is_ours: Callable[[Any], bool]) -> Callable[[], None]:
    """Hide known numbers in all logging of this process from here on; a second call changes nothing.

    `is_ours(logger)`: whether structlog's lines to this logger hide numbers already. Returns what undoes it.
    """
    if getattr(logging.Logger.callHandlers, "hides_numbers", False):
        return lambda: None
    call_handlers, to_text = logging.Logger.callHandlers, logging.Handler.format
    exception_text = logging.Formatter.formatException
    process_event = BoundLoggerBase._process_event  # noqa: SLF001 - documented, for wrapper classes
    pretty_print = PrettyPrinter.pprint

    def call_handlers_hidden(self: logging.Logger, record: logging.LogRecord) -> None:
        call_handlers(self, without_numbers(record))

    def to_text_hidden(self: logging.Handler, record: logging.LogRecord) -> str:
        return KNOWN_NUMBERS.hide_value(to_text(self, record))  # type: ignore[no-any-return]  # whatever it makes

    def exception_text_hidden(self: logging.Formatter, *exc_info: Any, **named: Any) -> str:
        return KNOWN_NUMBERS.hide(exception_text(self, *exc_info, **named))

    def process_event_hidden(
        self: BoundLoggerBase, method_name: str, event: str | None, event_kw: dict[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        arguments, named = process_event(self, method_name, event, event_kw)
        if is_ours(self._logger):
            return arguments, named
        hide = KNOWN_NUMBERS.hide_value
        return tuple(hide(value) for value in arguments), {name: hide(value) for name, value in named.items()}

    def pretty_print_whole(self: PrettyPrinter, object: Any) -> None:  # noqa: A002 - as pprint calls it
        stream = self._stream  # type: ignore[attr-defined]
        if stream is not None:
            stream.write(f"{self.pformat(object)}\n")

    call_handlers_hidden.hides_numbers = True  # type: ignore[attr-defined]
    _patch(
        call_handlers_hidden, to_text_hidden, exception_text_hidden, process_event_hidden, pretty_print_whole
    )
    return lambda: _patch(call_handlers, to_text, exception_text, process_event, pretty_print)


def _patch(call_handlers: Any, to_text: Any, exception_text: Any, process_event: Any, pretty: Any) -> None:
    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    logging.Handler.format = to_text  # type: ignore[method-assign]
    logging.Formatter.formatException = exception_text  # type: ignore[method-assign]
    BoundLoggerBase._process_event = process_event  # type: ignore[method-assign]  # noqa: SLF001 - as above
    PrettyPrinter.pprint = pretty  # type: ignore[method-assign]


def without_numbers(record: logging.LogRecord) -> logging.LogRecord:
    """The record itself, or a copy without its known numbers, whose message is final and whose arguments are gone."""
    hide = KNOWN_NUMBERS.hide_value
    changed: dict[str, Any] = {}
    if isinstance(record.msg, (dict, list, tuple)) and not record.args:  # for a formatter that wants it so
        hidden = hide(record.msg)
        if hidden is not record.msg:
            changed["msg"] = hidden
    else:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit: logging itself tells of it, and shows them
            changed |= {"msg": hide(record.msg), "args": hide(record.args)}
        else:
            hidden = hide(message)
            # A dict of arguments may have some that the message does not show, and a formatter does.
            args = record.args
            if hidden is not message or (isinstance(args, dict) and hide(args) is not args):
                changed |= {"msg": hidden, "args": ()}
    for name, value in vars(record).items():
        if name not in _STANDARD or name in ("exc_text", "stack_info"):
            hidden = hide(value)
            if hidden is not value:
                changed[name] = hidden
    if not changed:
        return record
    record = copy.copy(record)
    vars(record).update(changed)
    return record
