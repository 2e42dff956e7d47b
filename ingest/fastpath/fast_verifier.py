"""Verifies ordinary callbacks by what their head and form have in common with earlier ones. Pure.

| step | in CallbackVerifier | here |
| --- | --- | --- |
| head parsed, account and URL found | `read_head`, `check_head` | by head template and target (`head_templates`) |
| parameters parsed, in signed order | `parse_body`, `v3_parameter_texts` | by form template (`form_templates`) |
| signature | HMAC, compared in constant time | the same |
| stored | `RawCallback`, as it came | the same |

It only accepts, and only what CallbackVerifier would accept with the same result
(tests/ingest/fastpath/test_fast_verifier.py). It never refuses: on everything else it returns None, and
CallbackVerifier decides. Everything it remembers, it learned from requests with a valid signature.
"""

from typing import Final, NamedTuple
from zlib import crc32

from maskline.ingest.auth.accounts import Credential, signing_account
from maskline.ingest.auth.body_readings import signed_readings
from maskline.ingest.auth.signatures import split_signatures, v3_parameter_texts, v3_signed_texts
from maskline.ingest.auth.verifier import (
    AcceptedCallback,
    CallbackHead,
    CallbackVerifier,
    bears_v3_signature,
)
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.fastpath.head_templates import HeadTemplate, HeadTemplates
from maskline.ingest.parser.request_head import RequestHead
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import Parameters, parse_pairs, type_naming

TARGETS_MAX: Final = 1_024
"""Of each head template: some senders put a number into the URL. Beyond it, all are forgotten and learned anew."""
TARGET_MAX_BYTES: Final = 1_024


class _KnownTarget(NamedTuple):
    """What a head with this target means, apart from its nonce and signatures."""

    signed_prefix: bytes
    """All of the signed text before the form."""
    query: bytes
    content_type: str
    """As it is stored for a form."""
    credentials: tuple[Credential, ...]
    """Whose signatures count."""


class FastVerifier:
    """The fast path of one process, for peers whose X-Forwarded headers are believed, or for those whose are not.

    `learns`: whether templates are learned; without any, every request is CallbackVerifier's.
    """

    __slots__ = ("_forms", "_learns", "_main_credentials", "_targets", "_verifier", "head_templates")

    def __init__(self, verifier: CallbackVerifier, forms: FormTemplates, *, learns: bool = True) -> None:
        self._verifier = verifier
        self._learns = learns and verifier.verifies
        self._main_credentials = verifier.accounts.main_credentials
        self._forms = forms
        self._targets: dict[HeadTemplate, dict[bytes, _KnownTarget]] = {}
        self.head_templates = HeadTemplates()

    def verify(
        self,
        template: HeadTemplate,
        captured: tuple[bytes, ...],
        body: bytes,
        received_at_ms: int,
    ) -> AcceptedCallback | None:
        """Accept a request as CallbackVerifier would; None where only that can decide.

        `captured`: what `template` captured of the head, in the order of GROUPS. `body`: complete. `received_at_ms`:
        Unix time in milliseconds.
        """
        target, _, signature, main_signature, nonce = captured
        targets = self._targets.get(template)
        known = None if targets is None else targets.get(target)
        form = self._forms.read(body)
        if known is None or form is None:
            return None
        signed_prefix, query, content_type, credentials = known
        signed_form, session_uuid = form
        texts = (b"%b%b.%b" % (signed_prefix, signed_form.encode(), nonce),)
        auth_id = signing_account(credentials, texts, _split_signatures(signature))
        if auth_id is None:
            auth_id = signing_account(self._main_credentials, texts, _split_signatures(main_signature))
            if auth_id is None:
                return None
        callback = RawCallback("POST", query, content_type, body, received_at_ms, auth_id)
        return AcceptedCallback(crc32(session_uuid.encode()), encode_callback(callback))

    def learn(self, request_head: RequestHead, head: CallbackHead, body: bytes) -> None:
        """Learn from a request that CallbackVerifier accepted and whose head `fits_fast_path`."""
        if not self._learns or not bears_v3_signature(request_head.headers):
            return
        if not body or signed_readings(head.content_type, body) != ("form",):
            return  # CallbackVerifier may have read it as JSON, or may so read the next
        self._forms.learn(body)
        target = request_head.target.encode()
        template = self.head_templates.find(request_head.raw)
        if template is None:
            self.head_templates.learn(request_head)
            # Targets are forgotten with the template that they belong to.
            self._targets = {each: self._targets.get(each, {}) for each in self.head_templates.templates}
            return
        targets = self._targets[template]
        if target not in targets and len(target) <= TARGET_MAX_BYTES:
            if len(targets) >= TARGETS_MAX:
                targets.clear()
            if (signed_prefix := _signed_prefix(head)) is not None:
                targets[target] = _KnownTarget(
                    signed_prefix,
                    head.query,
                    type_naming("form", head.content_type),
                    self._verifier.accounts.credentials(head.auth_id),
                )


def _split_signatures(signatures: bytes) -> list[bytes]:
    """As `split_signatures`, which only a list needs."""
    if b"," in signatures:
        return split_signatures((signatures.decode(),))
    return [signatures] if signatures else []


def _signed_prefix(head: CallbackHead) -> bytes | None:
    """The signed text before a form; None if the query can be read in two ways."""
    try:
        query = parse_pairs(head.query)
    except NotDecodableError:
        return None
    parameter_texts = v3_parameter_texts("POST", Parameters(query, [("", "")], None))
    if len(parameter_texts) != 1:
        return None
    return v3_signed_texts(head.base_url, parameter_texts, "")[0].removesuffix(b".")
