"""A handler as the gates see it."""

from typing import NamedTuple


class Handler(NamedTuple):
    """Name and limits of a handler."""

    name: str
    concurrency: int | None = None
    rate: float | None = None
