"""Where commands in a directory find the `maskline dev` that runs there: its callback URL, in `.maskline/dev.url`.

Dev keeps the file locked while it runs, and the kernel releases the lock however dev ends. So a URL that a killed dev
has left behind is never taken for that of a running one.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from maskline.console.account import STATE_DIRECTORY

_FILE: Final = "dev.url"


@contextmanager
def announced(url: str, directory: Path = STATE_DIRECTORY) -> Iterator[bool]:
    """Have `find_dev_url` find this URL meanwhile. Yields whether it does: not beside another dev in the directory,
    or where the file cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / _FILE).open("a", encoding="utf-8")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(url)
            file.flush()
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            file.truncate(0)


def find_dev_url(directory: Path = STATE_DIRECTORY) -> str | None:
    """The callback URL of the dev that runs in this directory; None if none does."""
    try:
        with (directory / _FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or None
    except (OSError, UnicodeDecodeError):
        return None
    return None
