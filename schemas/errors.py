"""The error tree: the type says whose fault it is, the instance carries the evidence.

No message here ever holds a token, a password or a phone number.
"""

from collections.abc import Sequence
from typing import NamedTuple


class MasklineError(Exception):
    """The root of everything maskline raises on purpose."""


class ConfigError(MasklineError):
    """The operator's fault: a setting, a handler module, an argument. Ends a command with exit code 2."""


class Mistake(NamedTuple):
    """A mistake in a handler module, or a name of MASKLINE_HANDLERS that leads to none. As text: one line."""

    text: str
    """What is wrong; what to do."""
    file: str = ""
    """As a path from the working directory, or absolute elsewhere; empty for a mistake that is in no file."""
    line: int = 0
    """From 1; 0 where it concerns the whole file, or none."""

    def __str__(self) -> str:
        where = ":".join(filter(None, (self.file, str(self.line or ""))))
        return f"{where}: {self.text}" if where else self.text


class HandlerModulesError(ConfigError):
    """Handler modules cannot be used. `mistakes` has all that were found, in the order of the modules.

    As text it is the first of them, and says how many follow.
    """

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        more = len(mistakes) - 1
        others = f" (and {more} more: `maskline check` shows {'them' if more > 1 else 'it'})" if more else ""
        super().__init__(f"{mistakes[0]}{others}")
        self.mistakes = tuple(mistakes)


class NotDecodableError(MasklineError):
    """The sender's fault: parameters that cannot be read at all (broken JSON, bytes that are no UTF-8)."""


class UndecodableEntryError(MasklineError):
    """A stream entry that maskline did not write, or a callback that lacks what every event needs."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        """A stable word for metrics and for the `reason` of a dead letter: `foreign_entry`, `not_decodable`,
        `no_session_uuid`, …"""
        self.detail = detail


class RedisUnavailableError(MasklineError):
    """Redis did not answer: the connection is down, timed out, or was cut with commands under way."""


class RedisRefusesError(RedisUnavailableError):
    """Redis answers, but refuses what the settings ask for: the log-in, the database, WAITAOF, to be a cluster.

    Someone must change Redis or the settings. The process goes on trying, as no restart is needed once that is done.
    """
