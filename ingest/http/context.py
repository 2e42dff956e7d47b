"""What all connections of a node share: whom they ask, what they count, and how they come to their end."""

import asyncio

from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.ingest.auth.verifier import CallbackVerifier
from maskline.ingest.delivery.router import DeliveryRouter
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.fastpath.verifier import FastVerifier
from maskline.ingest.http.refusal_log import RefusalLog
from maskline.ingest.metrics import Metrics
from maskline.ingest.refusal import Refusal


class ServerContext:
    """`idle_timeout_s`: between requests. `learns`: whether layouts of requests are remembered."""

    def __init__(
        self, intake: CallbackVerifier, router: DeliveryRouter, metrics: Metrics,
        *, max_body_bytes: int, idle_timeout_s: float, learns: bool,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.intake = intake
        self.router = router
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.idle_timeout_s = idle_timeout_s
        self.refusals = RefusalLog(intake.origin)
        self.stopping = False
        """The next answer on each connection is its last."""
        self.under_way = 0
        """Requests that have not got their answer yet."""
        forms = FormTemplates()
        self._quick = FastVerifier(intake, forms, learns=learns)
        self._quick_of_trusted = FastVerifier(intake, forms, learns=learns)
        self._idle: asyncio.Future[None] | None = None

    @property
    def origin(self) -> DialledUrl:
        return self.intake.origin

    def quick(self, peer: str) -> FastVerifier:
        """The quick way for requests of this peer: where it is believed, the same head may mean another URL."""
        return self._quick_of_trusted if self.origin.asks_peer and self.origin.trusts(peer) else self._quick

    # Requests under way

    def began(self) -> None:
        self.under_way += 1

    def ended(self) -> None:
        self.under_way -= 1
        if self._idle is not None and not self.under_way and not self._idle.done():
            self._idle.set_result(None)

    async def finish(self, timeout_s: float) -> None:
        """Wait until no request is under way, at most so long."""
        self.stopping = True
        if self.under_way:
            self._idle = self.loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)

    def count_refused(self, refused: Refusal) -> None:
        self.metrics.refused[refused.status, refused.code] += 1
