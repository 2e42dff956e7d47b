"""Reads the header `Retry-After` of an HTTP answer (RFC 9110, 10.2.3). Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

RETRY_AFTER_MS_MAX: Final = 86_400_000
"""A day. A server that asks for more is asked again after it."""

_SECONDS: Final = re.compile(r"[0-9]{1,10}(?:\.[0-9]*)?")


def retry_after_ms(value: str | None, now: datetime) -> int | None:
    """How many milliseconds a server asks to wait, at most RETRY_AFTER_MS_MAX.

    `value`: the header, as seconds or as an HTTP date. `now`: the present, with its time zone. None where there is no
    header, or none that can be read; 0 for a date that is past.
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
    return round(min(max(wanted * 1000, 0), RETRY_AFTER_MS_MAX))
