"""`maskline pause HANDLER`: sets a handler's events aside in all workers of the group, until `maskline resume`."""

from maskline.console.handler_status import pause_text
from maskline.console.operators import operator_name
from maskline.console.pauses import add_arguments, agreed, find, print_change, write
from maskline.runtime.cli import CommandParser
from maskline.schemas.errors import ConfigError
from maskline.schemas.handler_control import WHY_MAX_CHARS, Pause


def main(argv: list[str]) -> int:
    """Run `maskline pause` with these arguments; the exit code is 1 if the operator says no."""
    parser = CommandParser(
        prog="maskline pause",
        description="Set the events of a handler aside, in all workers of the group, until `maskline resume HANDLER`. "
        "Nothing is lost, no attempt is spent, and the order of each session is kept. It takes effect within a second "
        "and outlasts restarts of workers and Redis.",
    )
    add_arguments(parser)
    parser.add_argument("--why", default="", metavar="TEXT", help="shown by maskline status, and logged")
    arguments = parser.parse_args(argv)
    if len(arguments.why) > WHY_MAX_CHARS:
        raise ConfigError(f"pause: --why takes {WHY_MAX_CHARS} characters at most")
    found = find(arguments.handler, "pause")
    name = found.name
    if found.pause is not None and arguments.why in ("", found.pause.why):
        paused = pause_text(found.status, found.now_ms)
        print_change(found, found.pause, f"{name} is {paused} already", as_json=arguments.json)
        return 0
    since_ms = found.now_ms if found.pause is None else found.pause.since_ms
    pause = Pause(since_ms, arguments.why, operator_name())
    if not agreed(f"Pause {name}? {found.numbers} already.", "pause", arguments):
        return 1
    write(arguments.handler, pause)
    effect = "has another reason for its pause" if found.pause is not None else "is paused"
    print_change(
        found,
        pause,
        f"{name} {effect}: {found.numbers} already; maskline resume {name}",
        as_json=arguments.json,
    )
    return 0
