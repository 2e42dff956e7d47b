"""Decides about requests off the fast path, and has the fast path learn those that it may take."""

from maskline.ingest.auth.verifier import AcceptedCallback, CallbackHead, CallbackVerifier
from maskline.ingest.fastpath.fast_verifier import FastVerifier
from maskline.ingest.fastpath.head_templates import fits_fast_path
from maskline.ingest.http.request_reader import ReceivedRequest
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.refusal import Refusal


class RequestDecider:
    """Decides about the requests of one peer, given by its address."""

    __slots__ = ("_fast_verifier", "_peer", "_verifier")

    def __init__(self, verifier: CallbackVerifier, fast_verifier: FastVerifier, peer: str) -> None:
        self._verifier = verifier
        self._fast_verifier = fast_verifier
        self._peer = peer

    def check_head(self, head: RequestHead) -> CallbackHead | Refusal:
        """Decide as far as the head alone allows it."""
        return self._verifier.check_head(
            head.method, head.target, head.headers, content_length=head.content_length, peer=self._peer
        )

    def decide(self, request: ReceivedRequest, received_at_ms: int) -> AcceptedCallback | Refusal:
        """Decide about a complete request. `received_at_ms`: Unix time in milliseconds."""
        head, checked = request.head, request.checked
        if isinstance(checked, Refusal):
            return checked
        decision, content = self._verifier.verify_any(checked, request.contents, received_at_ms)
        if isinstance(decision, AcceptedCallback) and head is not None and fits_fast_path(head):
            self._fast_verifier.learn(head, checked, content)
        return decision
