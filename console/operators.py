"""Who runs a command: noted beside what the command changes."""

import getpass
import socket
from typing import Final

OPERATOR_MAX_CHARS: Final = 200


def user_name() -> str:
    """The user that runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def operator_name() -> str:
    """The user and the machine, as `user@host`."""
    return f"{user_name()}@{socket.gethostname()}"[:OPERATOR_MAX_CHARS]
