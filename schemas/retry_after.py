"""Reads the header `Retry-After` of an HTTP answer (RFC 9110, 10.2.3). Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

RETRY_AFTER_MS_MAX: Final = 86_400_000
"""A day. A server that asks for more is asked again after it."""

RETRY_AFTER_MS_MIN: Final = 1_000
"""The header counts in seconds."""

_SECONDS: Final = re.compile(r"[0-9]{1,10}(?:\.[0-9]*)?")


def retry_after_ms(value: str | None, now: datetime) -> int | None:
    """How many milliseconds a server asks to wait, from RETRY_AFTER_MS_MIN to RETRY_AFTER_MS_MAX.

    `value`: the header, as seconds or as an HTTP date. `now`: the present, with its time zone. None where there is no
    header, none that can be read, or none that asks to wait: `0`, or a date that is past, as every date is that comes
    from a server with a slow clock. "At once" would have a server in trouble asked a hundred times a second.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        wanted = float(value)
    else:
        try:
            until = parsedate_to_datetime(value)
            if until.tzinfo is None:
                until = until.replace(tzinfo=UTC)
            wanted = (until - now).total_seconds()
        except (ValueError, OverflowError, TypeError):
            return None
    if wanted <= 0:
        return None
    return round(min(max(wanted * 1000, RETRY_AFTER_MS_MIN), RETRY_AFTER_MS_MAX))
