"""Decides about ordinary callbacks by what their head and their form have in common with earlier ones. Pure.

| step | in the intake | here |
| --- | --- | --- |
| head read, account and URL known | `read_head`, its `read_head` | by layout and target (`head_templates`) |
| parameters read, in signed order | `parse_parameters`, `v3_middles` | by layout (`form_templates`) |
| signature | HMAC, compared in constant time | the same |
| stored | `RawCallback`, as it came | the same |

It only ever says yes, and only where the intake would, with the same result
(tests/ingest/fastpath/test_fast_verifier.py); of everything else it says that it does not know, and the intake is
asked. What it remembers, it learned from requests with a valid signature.
"""

from typing import Final, NamedTuple
from zlib import crc32

from maskline.ingest.auth.accounts import Holder, signer
from maskline.ingest.auth.body_readings import covered_readings
from maskline.ingest.auth.signatures import listed_values, v3_middles, v3_texts
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier, Head
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.fastpath.head_templates import HeadTemplate, HeadTemplates
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.plivo_headers import NONCE_V3, SIGNATURE_MA_V3, SIGNATURE_V3
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import Parameters, parse_pairs, type_naming

TARGETS_MAX: Final = 1_024
"""Of each layout of heads; some put a number of theirs into the URL. When they are too many, they are learned anew."""
TARGET_MAX_BYTES: Final = 1_024


class _Dialled(NamedTuple):
    """What a head means beside its nonce and its signatures."""

    signed: bytes
    """All of the signed text before the form."""
    query: bytes
    content_type: str
    """As it is stored for a form."""
    holders: tuple[Holder, ...]


class FastVerifier:
    """The quick way of one process, for peers whose word about forwarded hosts is believed, or for those without."""

    __slots__ = ("_dialled", "_forms", "_intake", "_learns", "_mains", "heads")

    def __init__(self, intake: CallbackVerifier, forms: FormTemplates, *, learns: bool = True) -> None:
        self._intake = intake
        self._learns = learns and intake.verifies
        self._mains = intake.accounts.mains
        self._forms = forms
        self._dialled: dict[HeadTemplate, dict[bytes, _Dialled]] = {}
        self.heads = HeadTemplates()

    def decide(
        self, layout: HeadTemplate, target: bytes, signature: bytes, main_signature: bytes, nonce: bytes, body: bytes,
        received_at_ms: int,
    ) -> AcceptedCallback | None:  # fmt: skip
        """What the intake would accept, as it would; None where that is not known without it."""
        targets = self._dialled.get(layout)
        dialled = None if targets is None else targets.get(target)
        form = self._forms.read(body)
        if dialled is None or form is None:
            return None
        signed, query, content_type, holders = dialled
        signed_form, session_uuid = form
        texts = (b"%b%b.%b" % (signed, signed_form.encode(), nonce),)
        auth_id = signer(holders, texts, _values(signature))
        if auth_id is None:
            auth_id = signer(self._mains, texts, _values(main_signature))
            if auth_id is None:
                return None
        callback = RawCallback("POST", query, content_type, body, received_at_ms, auth_id)
        return AcceptedCallback(crc32(session_uuid.encode()), encode_callback(callback))

    def learn(self, ordinary: RequestHead, head: Head, body: bytes) -> None:
        """Remember what is common about a request that the intake accepted."""
        if not self._learns or not _bears_v3(ordinary):
            return
        if not body or covered_readings(head.content_type, body) != ("form",):
            return  # the intake may have read it as JSON, or may so read the next
        self._forms.learn(body)
        target = ordinary.target.encode()
        layout = self.heads.find(ordinary.raw)
        if layout is None:
            self.heads.learn(ordinary)
            # Forgotten with the layout that it belongs to.
            self._dialled = {known: self._dialled.get(known, {}) for known in self.heads.known}
            return
        targets = self._dialled[layout]
        if target not in targets and len(target) <= TARGET_MAX_BYTES:
            if len(targets) >= TARGETS_MAX:
                targets.clear()
            if (signed := _signed_before_form(head)) is not None:
                holders = self._intake.accounts.holders(head.account)
                targets[target] = _Dialled(
                    signed, head.query, type_naming("form", head.content_type), holders
                )


def _values(signature: bytes) -> list[bytes]:
    """As `listed_values`, which only a list needs."""
    if b"," in signature:
        return listed_values((signature.decode(),))
    return [signature] if signature else []


def _bears_v3(ordinary: RequestHead) -> bool:
    headers = ordinary.headers
    return bool(
        headers.get(NONCE_V3, "") and (headers.get(SIGNATURE_V3, "") or headers.get(SIGNATURE_MA_V3, ""))
    )


def _signed_before_form(head: Head) -> bytes | None:
    """What stands before a form in the signed text; None where that can be read in two ways."""
    try:
        query = parse_pairs(head.query)
    except NotDecodableError:
        return None
    middles = v3_middles("POST", Parameters(query, [("", "")], None))
    return v3_texts(head.base, middles, "")[0].removesuffix(b".") if len(middles) == 1 else None
