"""State shared by all connections of a node: collaborators, the count of requests, templates of earlier requests."""

import asyncio

from maskline.ingest.auth.verifier import CallbackVerifier
from maskline.ingest.delivery.router import DeliveryRouter
from maskline.ingest.fastpath.fast_verifier import FastVerifier
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.http.refusal_log import RefusalLog
from maskline.ingest.http.request_reader import ReceivedRequest
from maskline.ingest.metrics import Metrics
from maskline.ingest.parser.aiohttp_parser import NO_HEADERS
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.publish.linger import Linger
from maskline.ingest.refusal import Refusal
from maskline.ingest.refused.could_be_plivos import awaits_body
from maskline.ingest.refused.keeper import RefusedKeeper


class ServerContext:
    """The collaborators and shared state of connections; one for all connections of a node.

    `linger`: counts requests of senders that wait for answers. `max_body_bytes`: MASKLINE_MAX_BODY_BYTES.
    `idle_timeout_s`: how long a connection may be idle between requests.
    `fast_path`: whether templates of requests are learned. `keeper`: keeps refused requests; None if none are kept.
    """

    def __init__(
        self,
        verifier: CallbackVerifier,
        router: DeliveryRouter,
        metrics: Metrics,
        linger: Linger,
        *,
        max_body_bytes: int,
        idle_timeout_s: float,
        fast_path: bool,
        keeper: RefusedKeeper | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.verifier = verifier
        self.router = router
        self.metrics = metrics
        self.linger = linger
        self.max_body_bytes = max_body_bytes
        self.idle_timeout_s = idle_timeout_s
        self.stopping = False
        """Whether the next answer on each connection is its last."""
        self.requests_under_way = 0
        """Requests that have no answer yet, from the moment when their body is awaited or complete."""
        self._keeper = keeper
        self._refusal_log = RefusalLog(verifier.dialled_url)
        forms = FormTemplates()
        self._fast_verifier = FastVerifier(verifier, forms, learns=fast_path)
        self._fast_verifier_for_proxies = FastVerifier(verifier, forms, learns=fast_path)
        self._all_answered: asyncio.Future[None] | None = None

    def fast_verifier(self, peer: str) -> FastVerifier:
        """The fast path for requests of this peer: from a trusted proxy, the same head may mean another URL."""
        url = self.verifier.dialled_url
        is_proxy = url.depends_on_peer and url.is_trusted(peer)
        return self._fast_verifier_for_proxies if is_proxy else self._fast_verifier

    def request_began(self) -> None:
        """Count a request in: a stop waits for its answer."""
        self.requests_under_way += 1

    def request_ended(self) -> None:
        """Count a request out."""
        self.requests_under_way -= 1
        if self._all_answered is not None and not self.requests_under_way and not self._all_answered.done():
            self._all_answered.set_result(None)

    async def finish_requests(self, timeout_s: float) -> None:
        """Make each connection's next answer its last, and wait until no request is under way, at most `timeout_s`."""
        self.stopping = True
        if self.requests_under_way:
            self._all_answered = self.loop.create_future()
            await asyncio.wait([self._all_answered], timeout=timeout_s)

    def awaits_body(self, refusal: Refusal, head: RequestHead) -> bool:
        """Whether the body of a request that its head has refused is to be read, so that the request can be kept."""
        return self._keeper is not None and awaits_body(refusal, head)

    def keep_refused(
        self, refusal: Refusal, request: ReceivedRequest, received_at_ms: int, peer: str
    ) -> None:
        """Keep a refused request for a release, if it was read to its end and could be Plivo's."""
        if self._keeper is not None and request.head is not None and request.contents:
            body = request.contents[-1]
            if isinstance(body, bytes):
                self._keeper.keep(refusal, request.head, body, received_at_ms, peer)

    def count_refusal(self, refusal: Refusal) -> None:
        """Count a refusal in the metrics."""
        self.metrics.refused[refusal.status, refusal.code] += 1

    def record_refusal(self, refusal: Refusal, head: RequestHead | None, peer: str) -> None:
        """Count and log a refusal; `head` is None where none could be read."""
        self.count_refusal(refusal)
        target, headers = ("", NO_HEADERS) if head is None else (head.target, head.headers)
        self._refusal_log.record(refusal, target, headers, peer)
