"""The streams of this process: logs and prints go through a writer that never waits for a reader.

A process has one stderr, so what stands here is global: the writer of the log's stream, and the one of stdout once
printing goes this way too. Known numbers are hidden in everything that passes.
"""

import atexit
import os
import sys
from collections.abc import Callable

from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.logs.line_writer import LineWriter, nonblocking_text_stream

Write = Callable[[str | bytes], None]
"""Writes one line, without its line end."""

_log_writer: LineWriter | None = None
"""Writes the lines of the log."""
_stdout_writer: LineWriter | None = None
"""Writes what is printed to stdout, once `unblock_standard_streams` was called."""


def unblock_standard_streams() -> None:
    """Have prints to sys.stdout and sys.stderr, too, never wait for a reader from here on.

    Numbers of the events under way are hidden in it.
    """
    global _stdout_writer  # noqa: PLW0603 - a process has one stdout
    hide = KNOWN_NUMBERS.hide_bytes
    # Under both names: what goes by the second one has the same reader.
    if sys.stderr is not None:
        sys.stderr = sys.__stderr__ = nonblocking_text_stream(_stderr_writer(), sys.stderr, hide)  # type: ignore[misc]
    if sys.stdout is not None:
        _stdout_writer = LineWriter(sys.stdout, lambda count: b"%d lines dropped\n" % count)
        sys.stdout = sys.__stdout__ = nonblocking_text_stream(_stdout_writer, sys.stdout, hide)  # type: ignore[misc]


def write_log_to(writer: LineWriter) -> Write:
    """Make `writer` that of the log. Returns the function that writes a line by it."""
    global _log_writer  # noqa: PLW0603 - a process has one stderr
    _log_writer = writer
    return lambda line: writer.write(KNOWN_NUMBERS.hide_bytes(encode_line(line)))


def encode_line(line: str | bytes) -> bytes:
    """The line as the stream gets it: UTF-8, with its line end."""
    return (line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace")) + b"\n"


def lines_dropped() -> int:
    """How many log lines of this process were lost: nobody read them, or the disk was full."""
    return sum(writer.dropped for writer in _writers())


def lines_waiting() -> int:
    """How many log lines wait in memory, as nobody has read the pipe yet."""
    return sum(writer.waiting for writer in _writers())


def write_to_stderr(line: str) -> None:
    """Write a line for a person to stderr, as it is, before or after `configure_logging`, and never wait."""
    if sys.stderr is not None:  # closed from the start
        _stderr_writer().write(encode_line(KNOWN_NUMBERS.hide(line)))


def flush_logs() -> None:
    """Write the waiting lines as long as somebody reads; two seconds at most. The exit calls it by itself."""
    for writer in _writers():
        writer.finish()


def crash_dump_descriptor() -> int:
    """A file descriptor that C code may write a crash dump to without blocking. Raises OSError if there is none."""
    return _stderr_writer().descriptor()


def _writers() -> list[LineWriter]:
    return [writer for writer in (_log_writer, _stdout_writer) if writer is not None]


def _stderr_writer() -> LineWriter:
    if _log_writer is None:
        write_log_to(LineWriter(sys.stderr, lambda count: encode_line(f"{count} log lines dropped")))
    assert _log_writer is not None  # noqa: S101 - just set
    return _log_writer


def _after_fork() -> None:
    for writer in _writers():
        writer.after_fork()


atexit.register(flush_logs)
os.register_at_fork(after_in_child=_after_fork)
