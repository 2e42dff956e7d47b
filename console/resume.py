"""`maskline resume HANDLER`: ends a pause; what was set aside is worked off in order, at a growing pace."""

from maskline.console.handler_status import pause_text, state_text
from maskline.console.pauses import add_arguments, agreed, find, print_change, write
from maskline.runtime.cli import CommandParser


def main(argv: list[str]) -> int:
    """Run `maskline resume` with these arguments; the exit code is 1 if the operator says no."""
    parser = CommandParser(
        prog="maskline resume",
        description="End the pause of a handler. What was set aside is worked off in order, at a growing pace.",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    found = find(arguments.handler, "resume")
    name, now_ms = found.name, found.now_ms
    if found.pause is None:
        state = state_text(found.status, now_ms)
        print_change(found, None, f"{name} is not paused: {state}", as_json=arguments.json)
        return 0
    paused = pause_text(found.status, now_ms)
    if not agreed(f"Resume {name}? It is {paused}. {found.numbers}.", "resume", arguments):
        return 1
    write(arguments.handler, None)
    print_change(found, None, f"{name} is resumed: it was {paused}; {found.numbers}", as_json=arguments.json)
    return 0
