"""Verifies a refused request again, with the settings of now, by the code that verifies requests. Pure.

What is accepted is the callback as ingest would have taken it, with the time when it was received. The head is read by
the same parser, so the same path, account, URL, signature and parameters count. One thing is more than ingest does:

| path of the request | is read as | since |
| --- | --- | --- |
| `/callbacks`, `/callbacks/{auth_id}` | it stands | |
| `/prefix/callbacks…` | without its prefix; else as below | a mended proxy strips the prefix |
| any other | the common path, if it names a SessionUUID | a URL mended at Plivo's does not change what was dialled |

The signature covers the URL that was dialled in each case. So nothing passes that Plivo has not sent to that URL, and
without verification (MASKLINE_VERIFY=off) only what stands under a path of ours.
"""

from maskline.ingest.auth.callback_paths import without_prefix
from maskline.ingest.auth.dialled_url import split_absolute
from maskline.ingest.auth.verifier import UNKNOWN_PATH, AcceptedCallback, CallbackVerifier
from maskline.ingest.parser.request_body import BodyReader
from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.refusal import Refusal
from maskline.ingest.refused.could_be_plivos import names_session
from maskline.ingest.refused.request import RefusedRequest
from maskline.schemas.settings import Settings


class ReleaseVerifier:
    """Decides which refused requests are good by these settings."""

    __slots__ = ("_max_body_bytes", "_verifier")

    def __init__(self, settings: Settings) -> None:
        self._verifier = CallbackVerifier(settings)
        self._max_body_bytes = settings.max_body_bytes

    def verify(self, request: RefusedRequest) -> AcceptedCallback | Refusal:
        """The callback to append to its stream; or why the request is still refused."""
        head = read_head(request.head)
        if isinstance(head, Refusal):
            return head
        decision = self._verify_as(head, request)
        if not isinstance(decision, Refusal) or decision.code != UNKNOWN_PATH:
            return decision
        if not self._verifier.verifies or not names_session(head, request.body):
            return decision
        forwarded = _without_prefix(head)
        for other in (
            forwarded and self._verify_as(forwarded, request),
            self._verify_any_path(head, request),
        ):
            if isinstance(other, AcceptedCallback):
                return other
        return decision

    def checked_url(self, request: RefusedRequest) -> str:
        """The URL that the signature is checked for, without its query; empty where the head cannot be read."""
        head = read_head(request.head)
        if isinstance(head, Refusal):
            return ""
        authority, path = split_absolute(head.target.partition("?")[0].partition("#")[0])
        return self._verifier.dialled_url.base_url(authority, path, head.headers, request.peer)

    def _verify_any_path(self, head: RequestHead, request: RefusedRequest) -> AcceptedCallback | Refusal:
        return self._verify_as(head, request, any_path=True)

    def _verify_as(
        self, head: RequestHead, request: RefusedRequest, *, any_path: bool = False
    ) -> AcceptedCallback | Refusal:
        checked = self._verifier.check_head(
            head.method,
            head.target,
            head.headers,
            content_length=len(request.body),
            peer=request.peer,
            any_path=any_path,
        )
        if isinstance(checked, Refusal):
            return checked
        # The body is kept without chunks; its length stands for the header that is not kept.
        body = BodyReader(
            head._replace(content_length=len(request.body), chunked=False), self._max_body_bytes
        )
        rest = body.feed(request.body)
        if isinstance(rest, Refusal):
            return rest
        decision, _ = self._verifier.verify_any(checked, body.contents(), request.received_at_ms)
        return decision


def _without_prefix(head: RequestHead) -> RequestHead | None:
    """The head as a proxy that strips its prefix would have forwarded it; None where the path has no prefix."""
    path, mark, query = head.target.partition("?")
    forwarded = without_prefix(path)
    return None if forwarded is None else head._replace(target=f"{forwarded}{mark}{query}")
