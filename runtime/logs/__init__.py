"""Logging: one structured line an event, on stderr, without a phone number in it.

Everything takes the same way out, ours (structlog) and the libraries' (stdlib `logging`, warnings, uncaught
exceptions): context, exception text, privacy, then level, time and the rendering. Two rules hold whatever is
logged: no phone number leaves (every text goes through `redact`, every object becomes text first; the numbers of the
events under way are known, and hidden also in what handler modules print, and log by ways of their own), and
logging never raises into its caller, nor keeps him waiting (a closed pipe, one that nobody reads, or a hostile value
cost the line, not the work: runtime.logs.line_writer).
"""

import atexit
import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor

from maskline.runtime.logs import own_logging
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.logs.line_writer import LineWriter, as_text
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact
from maskline.schemas.settings import Settings

EventDict = MutableMapping[str, Any]

NUMBER_NAMES: Final = frozenset(NUMBER_ATTRIBUTES) | {
    "from_number",
    "to_number",
    "first_party",
    "second_party",
}
"""What stands under these names is a phone number, whatever it looks like."""
DEPTH_MAX: Final = 6
"""Nesting of a logged value; deeper is cut, so that a value that contains itself ends."""
ITEMS_MAX: Final = 100
"""Members of a logged list or dict; a line is read by a person or billed by the byte."""
TEXT_MAX_CHARS: Final = 32_768
"""Of one text, a traceback included; the line of a runaway recursion would run to megabytes."""

_TOKEN: Final = re.compile(r"num_[0-9a-f]+")

# C0 and C1 but newline and tab, and the two separators that some viewers break lines at.
_CONTROL: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
} | {0x2028: "\\u2028", 0x2029: "\\u2029"}
_BREAKS: Final = _CONTROL | {ord("\n"): "\\n", ord("\t"): "\\t"}


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines bear `logger=name`; cheap to make at import, set up by configure_logging."""
    # Not as an initial value: structlog's own first parameter is called `logger`.
    named: FilteringBoundLogger = structlog.get_logger(name)
    return named


def configure_logging(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Set up logging for this process, on `stream` (stderr). The last call counts.

    Loggers that are set up beside it, now or later, hide the numbers of the events under way.
    """
    own_logging.take_hold(lambda logger: isinstance(logger, _Line))
    output = sys.stderr if stream is None else stream
    terminal = _is_terminal(output)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" or (settings.log_format == "auto" and terminal)
    finish: list[Processor] = [
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _private,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        finish += [_unbroken, _console(colors=terminal and not os.environ.get("NO_COLOR"))]
    else:
        finish.append(_json)
    write = _use(LineWriter(output, lambda count: _dropped_line(finish, count)))
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _named, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *name: _Line(write, *name),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Routed(finish, write)], level=level, force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def wait_for_no_reader() -> None:
    """What else this process writes to sys.stdout and sys.stderr, as by `print`, goes the same way from here on.

    Numbers of the events under way are hidden in it.
    """
    global _printed  # noqa: PLW0603 - a process has one stdout
    hide = KNOWN_NUMBERS.hide_bytes
    # Under both names: what goes by the second one has the same reader.
    if sys.stderr is not None:
        sys.stderr = sys.__stderr__ = as_text(_writer(), sys.stderr, hide)  # type: ignore[misc]
    if sys.stdout is not None:
        _printed = LineWriter(sys.stdout, lambda count: b"%d lines dropped\n" % count)
        sys.stdout = sys.__stdout__ = as_text(_printed, sys.stdout, hide)  # type: ignore[misc]


def lines_dropped() -> int:
    """Log lines of this process that are lost: nobody read them, or the disk was full."""
    return sum(writer.dropped for writer in _writers())


def lines_waiting() -> int:
    """Log lines that nobody has read yet, beyond what a pipe takes."""
    return sum(writer.waiting for writer in _writers())


def say(line: str) -> None:
    """A line for a person on stderr, as it is, before and after `configure_logging`. Waits for nobody."""
    if sys.stderr is not None:  # closed from the start
        _writer().write(_encoded(KNOWN_NUMBERS.hide(line)))


def flush_logs() -> None:
    """Write what waits, as long as somebody reads it; a second or two at most. The exit does it by itself."""
    for writer in _writers():
        writer.finish()


def dump_descriptor() -> int:
    """Where C code may write at a crash without waiting for a reader. Raises OSError where there is none."""
    return _writer().descriptor()


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """A value as it may stand in a log: numbers as tokens, text redacted, objects as their redacted text."""
    if value is None or isinstance(value, bool):
        return value
    if name in NUMBER_NAMES:
        return _number(value)
    if type(value) in (int, float):
        return value
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and depth < DEPTH_MAX:
        return _members(value, depth + 1)
    return _text(value)


def _members(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        pairs = itertools.islice(value.items(), ITEMS_MAX)
        return {_text(name): plain(str(name), member, depth) for name, member in pairs}
    return [plain("", member, depth) for member in itertools.islice(value, ITEMS_MAX)]


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_number(member) for member in itertools.islice(value, ITEMS_MAX)]
    text = _shown(value)
    return text if not text or _TOKEN.fullmatch(text) else number_token(text)


def _text(value: Any) -> str:
    shown = _shown(value)
    text = redact(shown)
    if text is not shown:  # what is known first: a number has one token, with its country code or without
        text = redact(KNOWN_NUMBERS.hide(shown))
    return text if len(text) <= TEXT_MAX_CHARS else text[:TEXT_MAX_CHARS] + "…"


def _shown(value: Any) -> str:
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value).decode("utf-8", "backslashreplace")
        # An exception's text alone seldom says what it is; that of a time or a UUID does.
        return repr(value) if isinstance(value, BaseException) else str.__str__(str(value))
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not stop the work that logs it
        return f"<{type(value).__name__} that cannot be shown>"


def _named(logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    if logger.name is not None:
        event_dict["logger"] = logger.name
    return event_dict


def _private(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    try:
        return {name: plain(name, value) for name, value in event_dict.items()}
    except Exception as error:  # noqa: BLE001 - a mapping or a name that misbehaves: the line goes, the work goes on
        return {"event": "log line not rendered", "problem": type(error).__name__}


def _unbroken(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """No text from outside may forge a line or drive the terminal; tracebacks keep their line ends."""
    for name, value in event_dict.items():
        if isinstance(value, str):
            event_dict[name] = value.translate(_CONTROL if name in ("exception", "stack") else _BREAKS)
    return event_dict


def _console(*, colors: bool) -> Processor:
    # The other formatters show local variables, and with them phone numbers: not even as what is left if the step
    # that makes text of an exception were lost.
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


_FIRST: Final = ("timestamp", "level", "logger", "event")
"""The reader's eye wants these first."""
_encode_json: Final = msgspec.json.Encoder(enc_hook=_shown).encode


def _json(_logger: Any, _method: str, event_dict: EventDict) -> bytes:
    ordered = {**{name: event_dict.pop(name) for name in _FIRST if name in event_dict}, **event_dict}
    try:
        return _encode_json(ordered)
    except (ValueError, OverflowError, msgspec.MsgspecError):
        # Lone surrogates (a file name that is no UTF-8) and integers beyond 64 bits.
        return json.dumps(ordered, default=_shown).encode()


Write = Callable[[str | bytes], None]


_lines: LineWriter | None = None
"""What this process writes its lines with."""
_printed: LineWriter | None = None
"""The same for what is printed, where `wait_for_no_reader` was called."""


def _writers() -> list[LineWriter]:
    return [writer for writer in (_lines, _printed) if writer is not None]


def _use(writer: LineWriter) -> Write:
    global _lines  # noqa: PLW0603 - a process has one stderr
    _lines = writer
    return lambda line: writer.write(KNOWN_NUMBERS.hide_bytes(_encoded(line)))


def _writer() -> LineWriter:
    if _lines is None:
        _use(LineWriter(sys.stderr, lambda count: _encoded(f"{count} log lines dropped")))
    assert _lines is not None  # noqa: S101 - just set
    return _lines


def _encoded(line: str | bytes) -> bytes:
    return (line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace")) + b"\n"


def _dropped_line(processors: list[Processor], count: int) -> bytes:
    line: Any = {"event": "log lines dropped", "logger": "maskline.logs", "lines": count}
    for process in processors:
        line = process(None, "warning", line)
    return _encoded(line)


def _after_fork() -> None:
    for writer in _writers():
        writer.after_fork()


atexit.register(flush_logs)
os.register_at_fork(after_in_child=_after_fork)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class _Line:
    """What structlog hands a rendered line to, by whatever level."""

    def __init__(self, write: Write, name: str | None = None) -> None:
        self.name = name
        self.msg = self.log = self.debug = self.info = self.warning = self.warn = write
        self.error = self.err = self.exception = self.critical = self.fatal = self.failure = write


class _Routed(logging.Handler):
    """Takes the libraries' stdlib records the same way out."""

    def __init__(self, processors: list[Processor], write: Write) -> None:
        super().__init__()
        self.processors = processors
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            try:
                message = record.getMessage()
            except Exception:  # noqa: BLE001 - arguments that do not fit the format: the format alone, then
                message = str(record.msg)
            line: Any = {"event": message, "logger": record.name}
            if record.exc_info and record.exc_info[0] is not None:
                line["exc_info"] = record.exc_info
            for process in self.processors:
                line = process(None, record.levelname.lower(), line)
            self.write(line)
        except Exception as error:  # noqa: BLE001 - logging's own fallback prints the record with all it holds
            self.write(f"a record of {record.name} could not be logged: {type(error).__name__}")


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger("maskline").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread is not None else None
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        get_logger("maskline").critical("uncaught exception in thread", thread=name, exc_info=exc_info)


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    """What went wrong where nothing can be raised, as in __del__. Python's own hook waits for stderr."""
    if args.exc_value is not None:
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        get_logger("maskline").error("exception ignored", where=args.err_msg, exc_info=exc_info)
