"""A child's side of its supervision: it says that its event loop turns, that it came up, and why it could not start.

The supervisor gives each child the writing end of a pipe, by an environment variable. What goes through it are lines:
`beat`, `up`, and `failed` with the reason. Without a supervisor all of this does nothing.
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
        """Whether there is a supervisor, and it will read this."""
        if self.descriptor is None:
            return False
        try:
            os.write(self.descriptor, f"{line}\n".encode())
        except BrokenPipeError:
            # The supervisor is gone. The kernel tells so on Linux alone.
            self.descriptor = None
            os.kill(os.getpid(), signal.SIGTERM)
            return False
        except OSError:  # full: the supervisor stands still
            return False
        return True


_pipe: Final = _Pipe()


def attach() -> None:
    """Find out whether this process is a supervised one. To be called first; children of this process are none."""
    descriptor, _, supervisor = os.environ.pop(VARIABLE, "").partition(":")
    if not supervisor:
        return
    die_with_parent(int(supervisor), signal.SIGTERM)
    with contextlib.suppress(OSError):
        os.set_inheritable(int(descriptor), False)
        os.set_blocking(int(descriptor), False)
        _pipe.descriptor = int(descriptor)


def report_beat() -> None:
    """To be called on the event loop: it turns."""
    _pipe.send(BEAT)


def report_up() -> None:
    """The node has started: whatever ends it from here on, it is worth starting again."""
    _pipe.send(UP)


def report_failure(reason: str) -> bool:
    """Why this process cannot start; whether the supervisor says it."""
    text = reason.encode("utf-8", "backslashreplace")[:REASON_MAX_BYTES].decode("utf-8", "ignore")
    return _pipe.send(FAILED + " ".join(text.split()))
