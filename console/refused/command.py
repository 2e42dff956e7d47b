"""`maskline refused`: its arguments."""

import argparse

from maskline.console.arguments import positive
from maskline.console.redis_reader import run_with_reader
from maskline.console.refused import listing, release, show
from maskline.console.selectors import add_refused_selectors, refused_selection
from maskline.runtime.cli import CommandParser


def main(argv: list[str]) -> int:
    """Run `maskline refused` with these arguments; the exit code."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline refused",
        description="Callbacks that were refused and could be Plivo's. Run it with the settings of ingest.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing_parser = commands.add_parser("list", help="how many were refused for which reason")
    add_refused_selectors(listing_parser)
    listing_parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        default=listing.LATEST_DEFAULT,
        help=f"list the latest N of a selection (default {listing.LATEST_DEFAULT})",
    )
    listing_parser.add_argument(
        "--json", action="store_true", help="an object: groups, and the latest requests"
    )
    listing_parser.set_defaults(run=_list)
    showing = commands.add_parser(
        "show", help="one of them, and what verification says of it now; numbers masked"
    )
    showing.add_argument("id", help="as the list has it")
    showing.add_argument("--json", action="store_true", help="as JSON")
    showing.set_defaults(run=_show)
    releasing = commands.add_parser(
        "release",
        help="verify them again with the settings of now, and hand on those that are good",
        description="Verifies refused callbacks again with the settings of now. Those that are good go to the "
        "handlers, once; the others stay. Exit code 1 if any of the selection is still refused, or not there.",
    )
    add_refused_selectors(releasing)
    releasing.add_argument("--dry-run", action="store_true", help="only say how many are good")
    releasing.add_argument("--yes", action="store_true", help="do not ask")
    releasing.add_argument("--json", action="store_true", help="the report as JSON")
    releasing.set_defaults(run=_release)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    selection = refused_selection(arguments, "refused list", all_by_default=True)
    return run_with_reader(lambda reader: listing.run(reader, arguments, selection))


def _show(arguments: argparse.Namespace) -> int:
    return run_with_reader(lambda reader: show.run(reader, arguments))


def _release(arguments: argparse.Namespace) -> int:
    return release.main(arguments, refused_selection(arguments, "refused release", all_by_default=False))
