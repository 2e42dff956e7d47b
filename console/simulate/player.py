"""Sends the requests of a plan as Plivo would: signed, paced, bounded, repeated once after a timeout.

Strategy: `concurrency` loops take requests from one iterator, so that nothing is planned before it is needed. A request
that must wait for others of its session (its epoch) blocks its loop. Those it waits for were taken before it, so the
loops cannot block each other.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final
from uuid import uuid4

import aiohttp
from yarl import URL

from maskline.console.simulate.plan import PlannedRequest
from maskline.ingest.auth.signatures import sign_v3
from maskline.schemas.parameters import Parameters, parse_pairs

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 40.0
RETRIES: Final = 1
"""Plivo's defaults: 2 s for the connection, 40 s for the answer, one retry and only after a timeout."""
KEEPALIVE_S: Final = 5.0
"""Shorter than any server's, as a request on a connection that the server just closed would count as unanswered."""


class Target:
    """The URL to send to, and the account that signs."""

    def __init__(self, url: str, auth_token: str, *, signed_url: str | None = None) -> None:
        """`signed_url`: the URL that the signature covers, if it is not `url` (MASKLINE_PUBLIC_URL)."""
        self.url = URL(url, encoded=True).with_fragment(None)
        self._token = auth_token
        signed = URL(signed_url or url, encoded=True)
        self._signed_base = str(signed.with_query(None).with_fragment(None))
        self._query = self.url.raw_query_string
        self._query_pairs = parse_pairs(self._query.encode())

    def dial(self, send: PlannedRequest) -> URL:
        """The URL of a request: a GET's parameters follow the target's own query."""
        query = "&".join(filter(None, (self._query, send.query)))
        return self.url.with_query(None).join(URL(f"?{query}", encoded=True)) if query else self.url

    def sign(self, method: str, parameters: Parameters, nonce: str) -> str:
        """The V3 signature of a request with these parameters and the target's own query."""
        query, body, json = parameters
        return sign_v3(
            self._token, method, self._signed_base, Parameters(self._query_pairs + query, body, json), nonce
        )

    def headers(self, send: PlannedRequest) -> dict[str, str]:
        """The headers of a request, signed anew: every request, a repeated one too, has its own nonce."""
        nonce = uuid4().hex
        signature = self.sign(send.method, send.parameters, nonce)
        headers = {"X-Plivo-Signature-V3": signature, "X-Plivo-Signature-V3-Nonce": nonce}
        if send.content_type:
            headers["Content-Type"] = send.content_type
        return headers


class Tally:
    """Counts the outcomes of the requests."""

    def __init__(self) -> None:
        self.sent = 0
        """Callbacks, whether answered or not."""
        self.retried = 0
        self.duplicates = 0
        self.answers: Counter[int] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.elapsed_s = 0.0

    @property
    def all_taken(self) -> bool:
        """Whether every callback was answered 200."""
        return not self.unanswered and set(self.answers) <= {200}


class _SessionRequests:
    """The requests of one session that were taken from the plan and are not answered, by epoch."""

    __slots__ = ("blocked", "under_way")

    def __init__(self) -> None:
        self.under_way: Counter[int] = Counter()
        self.blocked: list[asyncio.Future[None]] = []

    async def wait_for_earlier(self, epoch: int) -> None:
        while any(earlier < epoch for earlier in self.under_way):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.blocked.append(future)
            await future

    def finish(self, epoch: int) -> None:
        self.under_way[epoch] -= 1
        if not self.under_way[epoch]:
            del self.under_way[epoch]
        blocked, self.blocked = self.blocked, []
        for future in blocked:
            if not future.done():
                future.set_result(None)


class Player:
    """Sends requests to a target, `rate` a second (0: no limit). Calls `on_sent` after each."""

    def __init__(
        self,
        target: Target,
        *,
        rate: float = 0.0,
        concurrency: int = 32,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        on_sent: Callable[[PlannedRequest], None] = lambda _: None,
    ) -> None:
        self._target = target
        self._rate = rate
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(sock_connect=connect_timeout_s, sock_read=answer_timeout_s)
        self._on_sent = on_sent
        self._requests_by_session: dict[int, _SessionRequests] = {}
        self._taken = 0
        self._began = 0.0
        self.tally = Tally()

    async def play(self, sends: Iterator[PlannedRequest], stop: asyncio.Event) -> Tally:
        """Send all requests, or until `stop` is set; wait for those under way. Returns the tally."""
        self._began = time.monotonic()
        connector = aiohttp.TCPConnector(limit=self._concurrency, keepalive_timeout=KEEPALIVE_S)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "maskline-simulate"},
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._concurrency):
                group.create_task(self._loop(client, sends, stop))
        self.tally.elapsed_s = time.monotonic() - self._began
        return self.tally

    async def _loop(
        self, client: aiohttp.ClientSession, sends: Iterator[PlannedRequest], stop: asyncio.Event
    ) -> None:
        while not stop.is_set():
            send = next(sends, None)
            if send is None:
                return
            session = self._requests_by_session.setdefault(send.session, _SessionRequests())
            session.under_way[send.epoch] += 1
            due = self._began + self._taken / self._rate if self._rate else 0.0
            self._taken += 1
            try:
                if not await self._pace(due, stop):
                    return
                await session.wait_for_earlier(send.epoch)
                await self._send(client, send)
            finally:
                session.finish(send.epoch)
                if not session.under_way:
                    self._requests_by_session.pop(send.session, None)
            self._on_sent(send)

    async def _pace(self, due: float, stop: asyncio.Event) -> bool:
        """Wait until a request is due; False if `stop` was set meanwhile."""
        delay = due - time.monotonic()
        if delay <= 0:
            return True
        try:
            async with asyncio.timeout(delay):
                await stop.wait()
        except TimeoutError:
            return True
        return False

    async def _send(self, client: aiohttp.ClientSession, send: PlannedRequest) -> None:
        tally = self.tally
        tally.sent += 1
        tally.duplicates += send.duplicate
        url = self._target.dial(send)
        for attempt in range(RETRIES + 1):
            began = time.perf_counter()
            try:
                async with client.request(
                    send.method,
                    url,
                    data=send.body or None,
                    headers=self._target.headers(send),
                    allow_redirects=False,
                ) as response:
                    await response.read()
            except TimeoutError:
                if attempt < RETRIES:
                    tally.retried += 1
                    continue
                tally.unanswered["timeout"] += 1
            except aiohttp.ClientConnectorError:
                tally.unanswered["no connection"] += 1
            except aiohttp.ClientError:
                tally.unanswered["connection lost"] += 1
            else:
                tally.latencies_ms.append((time.perf_counter() - began) * 1000)
                tally.answers[response.status] += 1
            return
