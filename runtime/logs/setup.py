"""Sets up logging for a process: our loggers, the libraries', warnings and uncaught exceptions take one way out."""

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from maskline.runtime.logs import foreign_logging
from maskline.runtime.logs.line_writer import LineWriter
from maskline.runtime.logs.rendering import (
    add_logger_name,
    console_renderer,
    escape_control_characters,
    redact_fields,
    render_json,
)
from maskline.runtime.logs.streams import Write, encode_line, write_log_to
from maskline.schemas.settings import Settings


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines have `logger=name`. Cheap to make at import; `configure_logging` sets it up later."""
    # Not as an initial value: structlog's own first parameter is called `logger`.
    named: FilteringBoundLogger = structlog.get_logger(name)
    return named


def configure_logging(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Set up logging for this process, on `stream` (default: stderr), in the settings' format and level.

    May be called again: the last call counts. Logging that handler modules set up for themselves hides the numbers of
    the events under way from here on.
    """
    foreign_logging.install(lambda logger: isinstance(logger, _LineLogger))
    output = sys.stderr if stream is None else stream
    terminal = _is_terminal(output)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" or (settings.log_format == "auto" and terminal)
    finish: list[Processor] = [
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact_fields,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        finish += [
            escape_control_characters,
            console_renderer(colors=terminal and not os.environ.get("NO_COLOR")),
        ]
    else:
        finish.append(render_json)
    write = write_log_to(LineWriter(output, lambda count: _dropped_line(finish, count)))
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, add_logger_name, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *name: _LineLogger(write, *name),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_StdlibHandler(finish, write)], level=level, force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _dropped_line(processors: list[Processor], count: int) -> bytes:
    line: Any = {"event": "log lines dropped", "logger": "maskline.logs", "lines": count}
    for process in processors:
        line = process(None, "warning", line)
    return encode_line(line)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class _LineLogger:
    """Writes rendered lines: structlog calls the method of the line's level."""

    def __init__(self, write: Write, name: str | None = None) -> None:
        self.name = name
        self.msg = self.log = self.debug = self.info = self.warning = self.warn = write
        self.error = self.err = self.exception = self.critical = self.fatal = self.failure = write


class _StdlibHandler(logging.Handler):
    """Renders and writes the records of the libraries, which log by the standard library."""

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
    """Log an error where nothing can be raised, as in __del__. Python's own hook waits for stderr."""
    if args.exc_value is not None:
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        get_logger("maskline").error("exception ignored", where=args.err_msg, exc_info=exc_info)
