"""`maskline dead`: its arguments."""

import argparse

from maskline.console.arguments import positive
from maskline.console.dead import groups, rows, show
from maskline.console.redis_reader import run_with_reader
from maskline.console.selectors import add_letter_selectors, letter_selection
from maskline.runtime.cli import CommandParser


def main(argv: list[str]) -> int:
    """Run `maskline dead` with these arguments; the exit code."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> CommandParser:
    parser = CommandParser(prog="maskline dead", description="What could not be handled, and why.")
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
    return parser


def _list(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead list", all_by_default=True)
    return run_with_reader(lambda reader: rows.run(reader, arguments, selection))


def _groups(arguments: argparse.Namespace) -> int:
    selection = letter_selection(arguments, "dead groups", all_by_default=True)
    return run_with_reader(lambda reader: groups.run(reader, arguments, selection))


def _show(arguments: argparse.Namespace) -> int:
    return run_with_reader(lambda reader: show.run(reader, arguments))
