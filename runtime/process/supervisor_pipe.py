"""The pipe by which a child tells its supervisor that its loop turns, that it is up, or why it could not start.

The supervisor gives each child the writing end of a pipe, named by an environment variable. The child writes lines:
`beat`, `up`, and `failed` with the reason. Without a supervisor the functions here do nothing.
"""

import contextlib
import os
import signal
from typing import Final

from maskline.runtime.process.die_with_parent import die_with_parent

VARIABLE: Final = "_MASKLINE_SUPERVISED"
"""`<descriptor of the pipe>:<process id of the supervisor>`"""
BEAT: Final = "beat"
UP: Final = "up"
FAILED: Final = "failed "
REASON_MAX_BYTES: Final = 4_000
"""With the rest of its line it fits into PIPE_BUF, and so into the pipe in one piece."""


class _Pipe:
    """The pipe to the supervisor, if there is one."""

    def __init__(self) -> None:
        self.descriptor: int | None = None

    def send(self, line: str) -> bool:
        """Write a line. Returns whether there is a supervisor that will read it."""
        if self.descriptor is None:
            return False
        try:
            os.write(self.descriptor, f"{line}\n".encode())
        except BrokenPipeError:
            # The supervisor is gone. Only Linux's kernel signals that by itself.
            self.descriptor = None
            os.kill(os.getpid(), signal.SIGTERM)
            return False
        except OSError:  # full: the supervisor does not read
            return False
        return True


_pipe: Final = _Pipe()


def attach() -> None:
    """Take over the pipe that the environment names, if any; to be called first.

    Children of this process do not inherit it.
    """
    descriptor, _, supervisor = os.environ.pop(VARIABLE, "").partition(":")
    if not supervisor:
        return
    die_with_parent(int(supervisor), signal.SIGTERM)
    with contextlib.suppress(OSError):
        os.set_inheritable(int(descriptor), False)
        os.set_blocking(int(descriptor), False)
        _pipe.descriptor = int(descriptor)


def report_beat() -> None:
    """Report that the event loop turns; called on it."""
    _pipe.send(BEAT)


def report_up() -> None:
    """Report that the node has started: if it ends from here on, it is worth starting again."""
    _pipe.send(UP)


def report_failure(reason: str) -> bool:
    """Report why this process cannot start. Returns whether there is a supervisor to log it."""
    text = reason.encode("utf-8", "backslashreplace")[:REASON_MAX_BYTES].decode("utf-8", "ignore")
    return _pipe.send(FAILED + " ".join(text.split()))
