"""The handlers of a consumer group, as its workers report them, and the error for a name that is none of them."""

import difflib
from collections.abc import Collection
from typing import Final

import hiredis

from maskline.console.handler_status import live_workers
from maskline.console.output import printable
from maskline.console.redis_reader import RedisReader, query_for
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.handler_control import decode_reports

CLOSE_NAMES_MAX: Final = 3


async def read_known_handlers(reader: RedisReader) -> set[str] | None:
    """The names of the handlers that live workers have, or those that were alive last; None if nobody ever said.

    Raises RedisUnavailableError.
    """
    handlers, workers = reader.keys.handlers, reader.keys.workers
    reports, time, heartbeats = await reader.send(
        [
            query_for(handlers, "HGETALL", handlers),
            query_for(workers, "TIME"),
            query_for(workers, "ZRANGE", workers, 0, -1, "WITHSCORES"),
        ]
    )
    for reply in (reports, time, heartbeats):
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses: {reply}")
    live, _ = live_workers(time, heartbeats, reader.settings.lease_ttl_ms)
    by_worker = {name.decode(): value for name, value in zip(reports[::2], reports[1::2], strict=True)}
    told = by_worker.keys() & live or by_worker.keys()
    return {name for worker in told for name in decode_reports(by_worker[worker])} or None


def require_known(handler: str, known: Collection[str], command: str) -> None:
    """Raise ConfigError, which names `command` and the names it may have meant, unless the handler is known."""
    if handler in known:
        return
    close = difflib.get_close_matches(handler, known, CLOSE_NAMES_MAX)
    meant = f" (did you mean {' or '.join(map(printable, close))}?)" if close else ""
    names = ", ".join(map(printable, sorted(known))) or "none"
    raise ConfigError(f"{command}: no worker has a handler {printable(handler)!r}{meant}; there are: {names}")
