"""The error tree: the type says whose fault it is, the instance carries the evidence.

No message here ever holds a token, a password or a phone number.
"""


class MasklineError(Exception):
    """The root of everything maskline raises on purpose."""


class ConfigError(MasklineError):
    """The operator's fault: a setting, a handler module, an argument. Ends a command with exit code 2."""


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
