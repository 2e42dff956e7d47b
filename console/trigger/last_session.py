"""The session that `maskline trigger` sent to last from this directory, in `.maskline/trigger.json`."""

import os
from pathlib import Path
from typing import Final

import msgspec

from maskline.console.account import STATE_DIRECTORY

_FILE: Final = "trigger.json"


class LastSession(msgspec.Struct, frozen=True):
    """A session, and the last numbers that were sent of it. No phone numbers."""

    session_uuid: str
    status: int | None = None
    recording: int | None = None


def read_last_session(directory: Path = STATE_DIRECTORY) -> LastSession | None:
    """The last session; None if there is none, or its file cannot be read."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=LastSession)
    except (OSError, msgspec.MsgspecError):
        return None


def write_last_session(last: LastSession, directory: Path = STATE_DIRECTORY) -> str | None:
    """Write it. Returns why that is not possible, None if it was."""
    path = directory / _FILE
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.write_bytes(msgspec.json.encode(last))
        aside.rename(path)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return None
