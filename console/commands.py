"""The commands of `maskline`: finds the command, imports its module alone, and runs it.

Exit codes: 0 done, 1 a problem found, 2 wrong usage or configuration (one line, no traceback).
"""

import argparse
from importlib import import_module
from importlib.metadata import version
from typing import Final, NamedTuple

from maskline.runtime.cli import CommandParser


class Command(NamedTuple):
    """A command and the module that runs it."""

    module: str
    """Its `main(argv)` runs the command and returns the exit code."""
    summary: str


COMMANDS: Final[dict[str, Command]] = {
    "dev": Command("maskline.console.dev", "everything in one terminal, with an embedded Valkey"),
    "ingest": Command("maskline.ingest.__main__", "an ingest node: takes callbacks in"),
    "worker": Command("maskline.worker.__main__", "a worker: puts events in order and runs your handlers"),
    "new": Command("maskline.console.new.command", "write a handler module to begin with, and its test"),
    "check": Command("maskline.console.check.command", "load handler modules, and say who handles what"),
    "simulate": Command("maskline.console.simulate.command", "play simulated masking sessions against a URL"),
    "trigger": Command(
        "maskline.console.trigger.command", "send one signed callback, and follow it to its handlers"
    ),
    "health": Command(
        "maskline.console.health", "are the processes of this machine, or container, well: for probes"
    ),
    "status": Command("maskline.console.status", "who owns which partitions and what waits"),
    "session": Command(
        "maskline.console.session.command", "one session: its calls, what waits in it; export it for a test"
    ),
    "dead": Command(
        "maskline.console.dead.command", "list, show, replay and discard callbacks that could not be handled"
    ),
    "replay": Command(
        "maskline.console.jobs.command", "run kept callbacks again; list and stop replays and discards"
    ),
    "refused": Command(
        "maskline.console.refused.command",
        "callbacks that were refused, and releasing them once that is mended",
    ),
    "pause": Command("maskline.console.pause", "set a handler's events aside until it is resumed"),
    "resume": Command("maskline.console.resume", "end a handler's pause"),
    "schema": Command("maskline.console.schema.command", "JSON Schemas and AsyncAPI of what programs read"),
    "settings": Command("maskline.console.settings", "every setting with its value, default and meaning"),
}


def dispatch(argv: list[str]) -> int:
    """Run a command line and return its exit code. Raises ConfigError for wrong usage."""
    command = COMMANDS.get(argv[0]) if argv else None
    if command is None:
        _parser().parse_args(argv or ["--help"])
        raise AssertionError  # the parser exits: by --help, --version or an error
    run = import_module(command.module).main
    code: int = run(argv[1:])
    return code


def _parser() -> CommandParser:
    width = max(map(len, COMMANDS))
    parser = CommandParser(
        prog="maskline",
        usage="maskline COMMAND [options]",
        description="Takes in Plivo Number Masking callbacks and hands them to your handlers, in order.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
        + "\n\n`maskline COMMAND --help` says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskline {version('maskline')}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
