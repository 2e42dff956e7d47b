"""Asks the operator before a command changes something."""

import sys

from maskline.schemas.errors import ConfigError


def confirmed(question: str, command: str, *, yes: bool) -> bool:
    """Ask a yes-or-no question on stderr and return whether the answer is yes; without asking if `yes` (`--yes`).

    `command`: as the operator typed it (`dead replay`), for the error. stdout is left to what the command prints. Call
    it outside an event loop, where Ctrl-C ends the wait for an answer. Raises ConfigError where nobody can be asked,
    since stdin is no terminal.
    """
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(
            f"{command}: stdin is no terminal, so nobody can be asked: say --yes (or --dry-run)"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
