"""The arguments by which commands select dead letters, kept callbacks, and refused ones."""

import argparse
from typing import Final, NamedTuple

from maskline.console.arguments import moment
from maskline.schemas.errors import ConfigError
from maskline.schemas.jobs import SELECTED_IDS_MAX, Selection

_TIME: Final = "ISO 8601, UTC unless it says otherwise, or 15m, 2h, 3d ago"


class RefusedSelection(NamedTuple):
    """Which refused callbacks an operator selected: all conditions given must hold; None and no ids stand for any."""

    ids: tuple[str, ...] = ()
    reason: str | None = None
    """The code for which they were refused."""
    since_ms: int | None = None
    """Received at this time or later, in milliseconds since the epoch."""


def add_letter_selectors(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select dead letters; `letter_selection` reads them."""
    selected = parser.add_argument_group("which dead letters: those for which all of it is true")
    selected.add_argument("ids", nargs="*", metavar="ID", help="as the list has it")
    selected.add_argument("--handler", metavar="NAME", help="given up by this handler")
    selected.add_argument("--event", metavar="NAME", help="of this type, as SessionTimeout")
    selected.add_argument("--session", metavar="UUID", help="of this session")
    selected.add_argument("--group", metavar="KEY", help="of this group of `maskline dead groups`")
    selected.add_argument("--reason", metavar="TEXT", help="with this code, or this text in the reason")
    _add_times(selected, "given up")
    selected.add_argument("--all", action="store_true", help="all of them")


def add_callback_selectors(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select kept callbacks; `callback_selection` reads them."""
    selected = parser.add_argument_group("which callbacks: those for which all of it is true")
    selected.add_argument("--session", metavar="UUID", help="of this session")
    _add_times(selected, "received")
    selected.add_argument("--event", metavar="NAME", help="of this type, as SessionTimeout")
    selected.add_argument("--handler", metavar="NAME", help="for this handler alone (default: for each)")


def add_refused_selectors(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select refused callbacks; `refused_selection` reads them."""
    selected = parser.add_argument_group("which refused callbacks: those for which all of it is true")
    selected.add_argument("ids", nargs="*", metavar="ID", help="as the list has it")
    selected.add_argument("--reason", metavar="CODE", help="refused for it, as signature_wrong")
    _add_since(selected, "received")
    selected.add_argument("--all", action="store_true", help="all of them")


def _add_since(group: argparse._ArgumentGroup, done: str) -> None:
    group.add_argument("--since", type=moment, metavar="TIME", help=f"{done} then or later: {_TIME}")


def _add_times(group: argparse._ArgumentGroup, done: str) -> None:
    _add_since(group, done)
    group.add_argument("--until", type=moment, metavar="TIME", help=f"{done} before that time")


def letter_selection(arguments: argparse.Namespace, command: str, *, all_by_default: bool) -> Selection:
    """The dead letters that the arguments select.

    `all_by_default`: nothing selected means all of them. Raises ConfigError, which names `command`, where nothing is
    selected otherwise, where `--all` stands beside something else, and for too many IDs.
    """
    selection = Selection(
        ids=tuple(arguments.ids),
        handler=arguments.handler,
        event=arguments.event,
        session=arguments.session,
        group=arguments.group,
        reason=arguments.reason,
        since_ms=arguments.since,
        until_ms=arguments.until,
    )
    _check(arguments, command, is_empty=selection.is_empty, all_by_default=all_by_default)
    return selection


def refused_selection(
    arguments: argparse.Namespace, command: str, *, all_by_default: bool
) -> RefusedSelection:
    """The refused callbacks that the arguments select. Raises ConfigError as `letter_selection` does."""
    selection = RefusedSelection(tuple(dict.fromkeys(arguments.ids)), arguments.reason, arguments.since)
    _check(arguments, command, is_empty=selection == RefusedSelection(), all_by_default=all_by_default)
    return selection


def _check(arguments: argparse.Namespace, command: str, *, is_empty: bool, all_by_default: bool) -> None:
    if len(arguments.ids) > SELECTED_IDS_MAX:
        raise ConfigError(f"{command}: at most {SELECTED_IDS_MAX:,} ids; select by what they have in common")
    if arguments.all and not is_empty:
        raise ConfigError(f"{command}: --all is all of them, so nothing else can be selected beside it")
    if is_empty and not arguments.all and not all_by_default:
        raise ConfigError(f"{command}: nothing is selected: name ids, or select by --reason, … or --all")


def callback_selection(
    arguments: argparse.Namespace, command: str, *, all_by_default: bool = False
) -> Selection:
    """The callbacks that the arguments select. Raises ConfigError where there is neither session nor time, unless
    nothing selected means all of them (`all_by_default`).
    """
    if arguments.session is None and arguments.since is None and not all_by_default:
        raise ConfigError(f"{command}: nothing is selected: say --session, or --since")
    return Selection(
        handler=arguments.handler,
        event=arguments.event,
        session=arguments.session,
        since_ms=arguments.since,
        until_ms=arguments.until,
    )
