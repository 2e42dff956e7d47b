"""Moves refused requests that could be Plivo's to Redis, beside the answers and slower than these if need be.

A refusal is answered at once. What is to be kept of its request gathers in a fair buffer (`ingest.refused.fair_buffer`)
and goes to Redis in batches, one after the other, each followed by a pause of PAUSE_FACTOR times as long as it took. So
a flood of refused requests takes a bounded share of Redis, of the link and of this process; what is beyond is dropped
and counted, an address's surplus first.

While Redis is away, or takes no callbacks, the buffer holds what comes, up to its bound. It is not written to the disk:
that would serve where the settings are wrong and Redis is away at the same time, and let strangers fill the disk of the
spool. At a stop the buffer goes to Redis within the stop's deadline.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.ingest.metrics import Metrics
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.refusal import Refusal
from maskline.ingest.refused.could_be_plivos import could_be_plivos
from maskline.ingest.refused.fair_buffer import FairBuffer
from maskline.ingest.refused.request import RefusedRequest, encode_refused, refused_request, share_of
from maskline.ingest.refused.scripts import Kept, keep, read_kept
from maskline.runtime.logs import get_logger
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

BUFFER_MAX_BYTES: Final = 4 << 20
"""Some 2,000 ordinary callbacks: what comes in a second or two, and no burden on the process's memory."""
BATCH_MAX_BYTES: Final = 128 * 1024
"""Some 60 ordinary callbacks: the script takes about a millisecond for them, while the server does nothing else."""
GATHER_S: Final = 0.05
"""How long the first request waits for others: a batch that is not full, twenty times a second."""
PAUSE_FACTOR: Final = 4
"""A fifth of the time at most: a slow link or server has four fifths left for callbacks that are good."""
RETRY_S: Final = 1.0
"""Between two tries where Redis takes nothing."""
STOP_RETRY_S: Final = 0.1
"""The same during a stop, whose deadline is near."""
LOG_INTERVAL_S: Final = 60.0
"""Between two log lines about what was kept, or dropped."""

BUFFER_FULL: Final = "buffer_full"
"""Dropped: this process's buffer was full, and the address had its share, or more than that."""
NO_ROOM: Final = "no_room"
"""Dropped: Redis has too much of them, as a bound was lowered, or the request is larger than the bound."""
STOPPED: Final = "stopped"
"""Dropped: Redis did not take it before the stop's deadline."""

HINT: Final = "mend what the refusals name, then `maskline refused list` and `maskline refused release`"

SendTo = Callable[[str, bytes], asyncio.Future[list[Any]] | None]

_log = get_logger("maskline.ingest")


class RefusedKeeper:
    """Keeps refused requests of one process, from `start` to `finish`.

    `send_to(key, command)`: sends a packed command to the server that has a key, and returns the future of its replies;
    None while that server takes no callbacks.
    """

    def __init__(
        self,
        settings: Settings,
        dialled_url: DialledUrl,
        metrics: Metrics,
        tasks: BackgroundTasks,
        send_to: SendTo,
    ) -> None:
        self._max_bytes = settings.refused_max_bytes
        self._ttl_ms = settings.refused_ttl_s * 1000
        self._keys = Keys(settings.namespace).refused
        self._dialled_url = dialled_url
        self._metrics = metrics
        self._tasks = tasks
        self._send_to = send_to
        self._buffer: FairBuffer[RefusedRequest] = FairBuffer(BUFFER_MAX_BYTES)
        self._batch: list[tuple[str, bytes]] = []
        """What was taken from the buffer, and is not known to be in Redis."""
        self._key_prefix = secrets.token_hex(8)
        self._last_key = 0
        """Of the last request taken into the buffer; the prefix stands before it."""
        self._filled = asyncio.Event()
        self._finishing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logged = (0, 0)
        """How many were kept, and dropped, when that was last logged."""
        self._kept_logged_at = self._failure_logged_at = monotonic() - LOG_INTERVAL_S

    def start(self) -> None:
        """Move what is kept to Redis, in the background."""
        self._task = self._tasks.start("refused callbacks", self._run)

    def keep(self, refusal: Refusal, head: RequestHead, body: bytes, received_at_ms: int, peer: str) -> None:
        """Keep a refused request if it could be Plivo's, and if there is room. Never waits.

        `body`: whole, and as it came. `received_at_ms`: Unix time in milliseconds. `peer`: the address of the
        connection's other end.
        """
        if not could_be_plivos(refusal, head, body):
            return
        url = self._dialled_url
        client = url.client_address(head.headers, peer) if url.is_trusted(peer) else peer
        share, size_bytes = share_of(client), len(head.raw) + len(body)
        pushed_out = self._buffer.pushed_out
        if not self._buffer.make_room(share, size_bytes):
            self._metrics.refused_dropped[BUFFER_FULL] += 1
            return
        if self._buffer.pushed_out != pushed_out:
            self._metrics.refused_dropped[BUFFER_FULL] += self._buffer.pushed_out - pushed_out
        self._last_key += 1
        request = refused_request(
            refusal,
            head,
            body,
            key=f"{self._key_prefix}-{self._last_key}",
            received_at_ms=received_at_ms,
            peer=peer,
            client=client,
        )
        self._buffer.add(share, request, size_bytes)
        self._filled.set()

    async def finish(self, timeout_s: float) -> None:
        """Move the rest to Redis within `timeout_s`; what does not get there is dropped, counted and logged."""
        self._finishing.set()
        self._filled.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=max(0.0, timeout_s))
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if left := len(self._batch) + len(self._buffer):
            self._metrics.refused_dropped[STOPPED] += left
            _log.warning("refused callbacks lost at stop", lost=left)

    async def _run(self) -> None:
        while True:
            if not self._batch:
                if not self._buffer.size_bytes:
                    if self._finishing.is_set():
                        return
                    self._filled.clear()
                    await self._filled.wait()
                    await self._pause(GATHER_S)
                    continue
                taken = self._buffer.take(BATCH_MAX_BYTES)
                self._batch = [(share, encode_refused(request)) for share, request in taken]
            began_at = monotonic()
            taken_by_redis = await self._send()
            took_s = monotonic() - began_at
            await self._pause(max(GATHER_S, PAUSE_FACTOR * took_s) if taken_by_redis else RETRY_S)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, and during a stop only as long as a loop that achieves nothing must."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._finishing.wait()
        if self._batch:
            await asyncio.sleep(STOP_RETRY_S)

    async def _send(self) -> bool:
        """Send the batch; whether Redis took it.

        Where Redis does not answer, it may have taken it all the same. A request is kept twice then, and its key sees
        to it that it is released once.
        """
        command = keep(self._keys, self._batch, max_bytes=self._max_bytes, ttl_ms=self._ttl_ms)
        replies = self._send_to(self._keys.requests, command)
        if replies is None:
            return False
        try:
            self._count(read_kept((await replies)[0]), len(self._batch))
        except RedisUnavailableError as error:
            if self._is_due(self._failure_logged_at):
                self._failure_logged_at = monotonic()
                _log.warning("refused callbacks not kept yet", reason=str(error))
            return False
        self._batch = []
        return True

    def _count(self, kept: Kept, sent: int) -> None:
        metrics = self._metrics
        metrics.refused_kept += kept.kept
        metrics.refused_removed.update(pushed_out=kept.pushed_out, expired=kept.expired)
        if kept.kept < sent:
            metrics.refused_dropped[NO_ROOM] += sent - kept.kept
        if self._is_due(self._kept_logged_at):
            self._kept_logged_at = monotonic()
            before, self._logged = self._logged, (metrics.refused_kept, metrics.refused_dropped.total())
            _log.info(
                "refused callbacks kept",
                kept=self._logged[0] - before[0],
                dropped=self._logged[1] - before[1],
                hint=HINT,
            )

    @staticmethod
    def _is_due(logged_at: float) -> bool:
        return monotonic() >= logged_at + LOG_INTERVAL_S
