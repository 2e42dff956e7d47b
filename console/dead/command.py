"""`maskline dead`: its arguments."""

import argparse

from maskline.console.arguments import positive
from maskline.console.dead import groups, rows, show
from maskline.console.dead.plan import look_at_letters
from maskline.console.jobs.start import Request, add_job_arguments, run
from maskline.console.redis_reader import run_with_reader
from maskline.console.selectors import add_letter_selectors, letter_selection
from maskline.runtime.cli import CommandParser


def main(argv: list[str]) -> int:
    """Run `maskline dead` with these arguments; the exit code."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline dead", description="What could not be handled, and why; replaying or discarding it."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="dead letters, the oldest first")
    add_letter_selectors(listing)
    listing.add_argument("--limit", type=positive, metavar="N", help="only the latest N")
    listing.add_argument("--json", action="store_true", help="an array of objects")
    listing.set_defaults(run=_list)
    grouping = commands.add_parser("groups", help="dead letters that failed alike, the most frequent first")
    add_letter_selectors(grouping)
    grouping.add_argument("--limit", type=positive, metavar="N", help="only the N with the most letters")
    grouping.add_argument("--json", action="store_true", help="an array of objects")
    grouping.set_defaults(run=_groups)
    showing = commands.add_parser("show", help="one dead letter with its traceback and original request")
    showing.add_argument("id", help="as the list has it")
    showing.add_argument("--json", action="store_true", help="as JSON")
    showing.add_argument("--reveal", action="store_true", help="show phone numbers; that you did is logged")
    showing.set_defaults(run=_show)
    replaying = commands.add_parser(
        "replay",
        help="run dead letters again; what waits behind them follows in order",
        description="Run dead letters again, oldest first in each session; what waits behind them follows in order. "
        "Workers do it; the command waits for them and reports. Exit code 1 if not all succeeded.",
    )
    add_letter_selectors(replaying)
    add_job_arguments(replaying)
    replaying.set_defaults(run=_replay)
    discarding = commands.add_parser(
        "discard",
        help="remove dead letters for good; what waits behind them goes on",
        description="Remove dead letters for good: their handlers never get these events. What waits behind them "
        "goes on, and ctx.skipped names what was left out. Workers do it; the command waits for them and reports.",
    )
    add_letter_selectors(discarding)
    add_job_arguments(discarding)
    discarding.set_defaults(run=_discard)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead list", all_by_default=True)
    return run_with_reader(lambda reader: rows.run(reader, arguments, selection))


def _groups(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead groups", all_by_default=True)
    return run_with_reader(lambda reader: groups.run(reader, arguments, selection))


def _show(arguments: argparse.Namespace) -> int:
    return run_with_reader(lambda reader: show.run(reader, arguments))


def _replay(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead replay", all_by_default=False)
    request = Request(
        command="dead replay",
        kind="dead",
        selection=selection,
        question="run them again?",
        look=lambda reader: look_at_letters(reader, selection, replay=True),
    )
    return run(request, arguments)


def _discard(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead discard", all_by_default=False)
    request = Request(
        command="dead discard",
        kind="discard",
        selection=selection,
        question="discard them for good?",
        look=lambda reader: look_at_letters(reader, selection, replay=False),
    )
    return run(request, arguments)
