"""The handlers of a consumer group, as its workers report them."""

import hiredis

from maskline.console.redis_reader import RedisReader, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import decode_reports


async def read_known_handlers(reader: RedisReader) -> set[str] | None:
    """The names of the handlers that live workers have, or those that were alive last; None if nobody ever said.

    Raises RedisUnavailableError.
    """
    handlers, workers = reader.keys.handlers, reader.keys.workers
    reports, now, heartbeats = await reader.send(
        [
            query_for(handlers, "HGETALL", handlers),
            query_for(workers, "TIME"),
            query_for(workers, "ZRANGE", workers, 0, -1, "WITHSCORES"),
        ]
    )
    for reply in (reports, now, heartbeats):
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses: {reply}")
    oldest_ms = int(now[0]) * 1000 + int(now[1]) // 1000 - reader.settings.lease_ttl_ms
    live = {
        name
        for name, beat_ms in zip(heartbeats[::2], heartbeats[1::2], strict=True)
        if float(beat_ms) >= oldest_ms
    }
    by_worker = dict(zip(reports[::2], reports[1::2], strict=True))
    told = live & by_worker.keys() or by_worker.keys()
    return {name for worker in told for name in decode_reports(by_worker[worker])} or None
