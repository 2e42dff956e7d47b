"""The options of `@on` and `@on.dead`, and which values they take. Pure."""

import math
from typing import Any, Final, NamedTuple

from maskline.schemas.errors import ConfigError
from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MS_DEFAULT,
    GIVE_UP_AFTER_S_DEFAULT,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    OnGiveUp,
    RetryPolicy,
)

NAME_MAX_BYTES: Final = 256
"""The bound of a handler's name in UTF-8: Redis keys, dead letters and metrics carry it, and a dead letter has room for
twice as much."""


class HandlerOptions(NamedTuple):
    """The options of one handler, as `@on` describes them."""

    retries: int | None = RETRIES_DEFAULT
    give_up_after_s: float = GIVE_UP_AFTER_S_DEFAULT
    backoff_ms: int = BACKOFF_MS_DEFAULT
    backoff_max_ms: int = BACKOFF_MAX_MS_DEFAULT
    timeout_ms: int = TIMEOUT_MS_DEFAULT
    on_give_up: OnGiveUp = "park"
    concurrency: int | None = None
    rate: float | None = None

    @property
    def policy(self) -> RetryPolicy:
        """Those that say how often, how soon and for how long a failed attempt is tried again."""
        return RetryPolicy(self.retries, self.backoff_ms, self.backoff_max_ms, self.give_up_after_s)

    def check(self, decorator: str) -> None:
        """Raise ConfigError, one line, if a value makes no sense. `decorator`: where it stands, as `@on`."""
        # Whether None is a value, and the least number.
        whole_numbers = {
            "retries": (True, 0),
            "backoff_ms": (False, 0),
            "backoff_max_ms": (False, 0),
            "timeout_ms": (False, 1),
            "concurrency": (True, 1),
        }
        for option, (optional, least) in whole_numbers.items():
            value: Any = getattr(self, option)
            if not (optional and value is None) and (type(value) is not int or value < least):
                raise ConfigError(
                    f"{decorator}: {option} must be a whole number of at least {least}, not {value!r}"
                )
        if not _is_number(self.give_up_after_s) or self.give_up_after_s < 0:
            raise ConfigError(
                f"{decorator}: give_up_after_s must be a number of seconds, 0 or more,"
                f" not {self.give_up_after_s!r}"
            )
        if self.rate is not None and (not _is_number(self.rate) or self.rate <= 0):
            raise ConfigError(
                f"{decorator}: rate must be a number of events per second, more than 0, not {self.rate!r}"
            )
        if self.on_give_up not in ("park", "skip"):
            raise ConfigError(f'{decorator}: on_give_up must be "park" or "skip", not {self.on_give_up!r}')


def check_name(name: Any, decorator: str) -> None:
    """Raise ConfigError, one line, if a handler cannot have this name. `decorator`: where it stands, as `@on`."""
    if type(name) is not str or not name.strip():
        raise ConfigError(f"{decorator}: name must be a text, not {name!r}")
    if not name.isprintable():  # a lone surrogate is not, either
        raise ConfigError(f"{decorator}: name must have printable characters only, unlike {name!r}")
    if len(name.encode()) > NAME_MAX_BYTES:
        raise ConfigError(
            f"{decorator}: name must have at most {NAME_MAX_BYTES} bytes, unlike {name[:40]!r}…"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
