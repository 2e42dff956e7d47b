"""`maskline check`: loads handler modules as a worker does, and prints who handles what, and every mistake.

It opens no socket and no resource. What modules print while they are imported goes to stderr, so that stdout has the
report alone.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

from maskline.console.check.report import as_json, as_lines, verdict
from maskline.console.check.slow_import import SlowImportWatch
from maskline.console.check.warnings import thread_warnings, warnings_of
from maskline.console.output import note, print_json, printable
from maskline.runtime.cli import CommandParser
from maskline.runtime.process.stop_deadline import exit_later
from maskline.schemas.settings import load_settings
from maskline.worker.api.entry_points import installed_handlers
from maskline.worker.api.loading import Survey, survey

IMPORT_LIMIT_S_DEFAULT = 10.0
"""A module that takes longer to be imported would keep a worker from starting for as long."""

THREADS_WAIT_S = 0.1
"""For threads that an import has left running, once everything is told."""

_EXIT_PROBLEM = 1
_EXIT_USAGE = 2
_EXIT_KILLED = 130


def main(argv: list[str]) -> int:
    """Run `maskline check` with these arguments; the exit code.

    0: fine, with or without warnings; 1: warnings and --strict; 2: mistakes. Raises ConfigError for wrong settings.
    """
    arguments = _parser().parse_args(argv)
    names, source = arguments.module, "maskline check"
    if not names:
        names, source = load_settings().handlers, "MASKLINE_HANDLERS"
    threads = {*threading.enumerate()}
    with _stdout_on_stderr(), _ctrl_c_ends(), SlowImportWatch(arguments.timeout):
        found = survey(names, source)
    left = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
    warnings = warnings_of(found) + thread_warnings(left)
    installed = installed_handlers()
    if arguments.json:
        print_json(as_json(found, warnings, installed))
    else:
        for line in as_lines(found, installed):
            print(line)
        sys.stdout.flush()
        for mistake in found.mistakes:
            note(printable(str(mistake)))
        for warning in warnings:
            note(printable(str(warning._replace(text=f"warning: {warning.text}"))))
        note(verdict(found, warnings))
    code = _exit_code(found, strict=arguments.strict and bool(warnings))
    if left:  # Python would wait for them
        sys.stdout.flush()
        exit_later(code, THREADS_WAIT_S)
    return code


def _exit_code(found: Survey, *, strict: bool) -> int:
    if found.mistakes:
        return _EXIT_USAGE
    return _EXIT_PROBLEM if strict else 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline check",
        description="Load handler modules without Redis, and print who handles what, and every mistake in them.",
    )
    parser.add_argument(
        "module",
        nargs="*",
        metavar="MODULE",
        help="as in MASKLINE_HANDLERS, which is the default: dotted, a .py file, or what a package brings",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if there are warnings")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=IMPORT_LIMIT_S_DEFAULT,
        metavar="S",
        help="how long the imports may take, in seconds (default: %(default)g)",
    )
    return parser


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send what is printed meanwhile, also by child processes, to stderr."""
    if sys.stdout is None or sys.stderr is None:
        yield
        return
    sys.stdout.flush()
    try:
        before = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):  # replaced by something without a descriptor, as a test does
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(before, sys.stdout.fileno())
        os.close(before)


@contextmanager
def _ctrl_c_ends() -> Iterator[None]:
    """Let Ctrl-C end the process at once, so that a KeyboardInterrupt is a module's own."""
    try:
        before = signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_KILLED))
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
