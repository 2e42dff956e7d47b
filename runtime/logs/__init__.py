"""Logging: one structured line an event, on stderr, without a phone number in it. `docs/logs.md` lists the events.

Our own lines (structlog) and the libraries' (stdlib `logging`, warnings, uncaught exceptions) go through the same
steps: context, exception text, privacy, then level, time and the rendering. Two rules hold for everything that is
logged:

- No phone number leaves. Every text is redacted and every object becomes text first (`redaction`); the numbers of the
  events under way are known (`known_numbers`), and hidden also in what handler modules print, and log by ways of their
  own (`foreign_logging`).
- Logging never raises into its caller, nor blocks it. A closed pipe, one that nobody reads, or a hostile value cost
  the line, not the work (`line_writer`, `streams`).
"""

from maskline.runtime.logs.setup import configure_logging, get_logger
from maskline.runtime.logs.streams import (
    crash_dump_descriptor,
    flush_logs,
    lines_dropped,
    lines_waiting,
    unblock_standard_streams,
    write_to_stderr,
)

__all__ = [
    "configure_logging",
    "crash_dump_descriptor",
    "flush_logs",
    "get_logger",
    "lines_dropped",
    "lines_waiting",
    "unblock_standard_streams",
    "write_to_stderr",
]
