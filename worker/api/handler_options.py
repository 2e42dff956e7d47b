"""The options of `@on` and `@on.dead`, and which values they take. Pure."""

import math
import reprlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

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

    def mistakes(self, decorator: str) -> Iterator[str]:
        """One line for each value that makes no sense. `decorator`: where it stands, as `@on`."""
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
                yield f"{decorator}: {option} must be a whole number of at least {least}, not {_shown(value)}"
        if not _is_number(self.give_up_after_s) or self.give_up_after_s < 0:
            yield (
                f"{decorator}: give_up_after_s must be a number of seconds, 0 or more,"
                f" not {_shown(self.give_up_after_s)}"
            )
        if self.rate is not None and (not _is_number(self.rate) or self.rate <= 0):
            yield (
                f"{decorator}: rate must be a number of events per second, more than 0,"
                f" not {_shown(self.rate)}"
            )
        if self.on_give_up not in ("park", "skip"):
            yield f'{decorator}: on_give_up must be "park" or "skip", not {_shown(self.on_give_up)}'


def name_mistake(name: Any, decorator: str) -> str | None:
    """One line if a handler cannot have this name, else None. `decorator`: where it stands, as `@on`."""
    if type(name) is not str or not name.strip():
        return f"{decorator}: name must be a text, not {_shown(name)}"
    if not name.isprintable():  # a lone surrogate is not, either
        return f"{decorator}: name must have printable characters only, unlike {_shown(name)}"
    if len(name.encode()) > NAME_MAX_BYTES:
        return f"{decorator}: name must have at most {NAME_MAX_BYTES} bytes, unlike {name[:40]!r}…"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    return reprlib.repr(value)
