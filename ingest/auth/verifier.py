"""Whether a request is a callback to be taken, and what goes into which stream for it. No I/O, no clock.

In two steps, so that what can be refused by its head is refused before its body is read:

| step | refused as |
| --- | --- |
| path is `/callbacks` or `/callbacks/{auth_id}` (`ingest.auth.callback_paths`) | 404 `unknown_path` |
| the account of the path is configured | 404 `unknown_account` |
| POST or GET | 405 `method_not_allowed` |
| announced length within MASKLINE_MAX_BODY_BYTES | 413 `body_too_large` |
| signature and nonce are there | 403 `signature_missing`, `nonce_missing` |
| body within MASKLINE_MAX_BODY_BYTES | 413 `body_too_large` |
| parameters can be decoded, as what the body is or might be (`ingest.auth.body_readings`) | 400 `not_decodable` |
| signature fits one of these readings | 403 `signature_wrong` |

Everything else is taken, also what bears no SessionUUID or EventName: it was signed, so it is Plivo's, and
the worker puts it to the dead letters where somebody can look at it.
"""

from itertools import product
from typing import Final, NamedTuple
from zlib import crc32

from maskline.ingest.auth.accounts import Accounts, signer
from maskline.ingest.auth.body_readings import covered_readings, uncovered_readings
from maskline.ingest.auth.callback_paths import PATH, account_in, why_unknown
from maskline.ingest.auth.dialled_url import DialledUrl, Headers, split_absolute
from maskline.ingest.auth.signatures import listed_nonces, listed_values, v2_text, v3_middles, v3_texts
from maskline.ingest.parser.request_body import BODY_TOO_LARGE
from maskline.ingest.parser.request_head import LENGTH_DIGITS_MAX
from maskline.ingest.plivo_headers import (
    NONCE_V2,
    NONCE_V3,
    SIGNATURE_MA_V2,
    SIGNATURE_MA_V3,
    SIGNATURE_V2,
    SIGNATURE_V3,
)
from maskline.ingest.refusal import Refusal
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.decode import parameter_pairs
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import (
    Pairs,
    Parameters,
    Reading,
    in_ascii,
    looks_like,
    parse_body,
    parse_pairs,
    type_naming,
)
from maskline.schemas.settings import Settings
from maskline.schemas.values import is_null

METHODS: Final = ("POST", "GET")

SESSION_UUID: Final = "SessionUUID"


class AcceptedCallback(NamedTuple):
    """A callback that is to be stored, and where."""

    partition_hash: int
    """The CRC-32 of the SessionUUID: its partition is `partition_hash % partitions` (schemas.keys.partition_of)."""
    value: bytes
    """The msgpack of a RawCallback: what the stream's entry holds."""


class Head(NamedTuple):
    """What is known of a request before its body."""

    method: str
    base: str
    """The URL that was dialled, without the query."""
    query: bytes
    content_type: str
    account: str
    """The account of the path, empty for the common one."""
    headers: Headers


class _Read(NamedTuple):
    """A request, and as what it was read."""

    parameters: Parameters
    reading: Reading
    auth_id: str
    """Whose signature it bore; without verification, the account of the path."""


UNKNOWN_ACCOUNT: Final = Refusal(404, "unknown_account", "this account is not configured here")
METHOD_NOT_ALLOWED: Final = Refusal(405, "method_not_allowed", "callbacks come by POST or GET")
SIGNATURE_MISSING: Final = Refusal(403, "signature_missing", f"the request has no {SIGNATURE_V3} header")
NONCE_MISSING: Final = Refusal(403, "nonce_missing", f"the request has no {NONCE_V3} header")
SIGNATURE_WRONG: Final = Refusal(403, "signature_wrong", "no token of ours makes this signature for this URL")


class CallbackVerifier:
    """Decides about requests, by the settings."""

    __slots__ = ("_accept_v2", "_max_body_bytes", "accounts", "origin", "verifies")

    def __init__(self, settings: Settings) -> None:
        self.accounts = Accounts(settings.auth_tokens)
        self.verifies = settings.verify != "off"
        self._accept_v2 = settings.accept_v2
        self._max_body_bytes = settings.max_body_bytes
        self.origin = DialledUrl(settings.public_url, settings.trusted_proxies)

    def read_head(
        self, method: str, target: str, headers: Headers, *, secure: bool = False, peer: str = ""
    ) -> Head | Refusal:
        """First step: route the request, and refuse what its head alone shows to be none of ours."""
        authority = ""
        if not target.startswith("/"):
            authority, target = split_absolute(target)
        if "#" in target:  # no part of a request target, but clients are known to leave it on
            target = target.partition("#")[0]
        path, _, query = target.partition("?")
        account = "" if path == PATH else account_in(path)
        if account is None:
            return Refusal(404, "unknown_path", *why_unknown(path))
        if account and not self.accounts.knows(account):
            return UNKNOWN_ACCOUNT
        if method not in METHODS:
            return METHOD_NOT_ALLOWED
        if self._announces_too_much(headers):
            return BODY_TOO_LARGE
        if self.verifies and (refused := self._lacks_signature(headers)):
            return refused
        return Head(
            method,
            self.origin.base(authority, path, headers, secure=secure, peer=peer),
            query.encode("utf-8", "surrogateescape"),
            headers.get("Content-Type", ""),
            account,
            headers,
        )

    def decide(self, head: Head, body: bytes, received_at_ms: int) -> AcceptedCallback | Refusal:
        """Second step, with the whole body: verify, route to a partition, pack for the stream."""
        if len(body) > self._max_body_bytes:
            return BODY_TOO_LARGE
        if head.method == "GET":
            body = b""  # the signature does not cover it
        try:
            pairs = parse_pairs(head.query)
            read = (
                self._read_signed(head, pairs, body)
                if self.verifies
                else _read_unsigned(head, pairs, body, head.account)
            )
            if read is None:
                return SIGNATURE_WRONG
            session_uuid = _session_uuid(read.parameters)
        except NotDecodableError as error:
            return Refusal(400, "not_decodable", str(error))
        # Without a session it is bound for the dead letters: anywhere, but the same callback always in the same place.
        partition_hash = crc32(session_uuid.encode()) if session_uuid else crc32(body, crc32(head.query))
        content_type = type_naming(read.reading, head.content_type) if body else in_ascii(head.content_type)
        value = encode_callback(
            RawCallback(head.method, head.query, content_type, body, received_at_ms, read.auth_id)
        )
        return AcceptedCallback(partition_hash, value)

    def _announces_too_much(self, headers: Headers) -> bool:
        length = headers.get("Content-Length", "")
        return length.isdecimal() and (len(length) > LENGTH_DIGITS_MAX or int(length) > self._max_body_bytes)

    def _lacks_signature(self, headers: Headers) -> Refusal | None:
        if _bears(headers, SIGNATURE_V3) or _bears(headers, SIGNATURE_MA_V3):
            if _bears(headers, NONCE_V3):
                return None
            refused = NONCE_MISSING
        else:
            refused = SIGNATURE_MISSING
        if self._accept_v2 and (_bears(headers, SIGNATURE_V2) or _bears(headers, SIGNATURE_MA_V2)):
            return None if _bears(headers, NONCE_V2) else NONCE_MISSING
        return refused

    def _read_signed(self, head: Head, query: Pairs, body: bytes) -> _Read | None:
        """The request as what somebody signed it whose token is here; None where nobody did.

        Raises NotDecodableError where it is nobody's, and cannot be decoded as what it seems to be.
        """
        readings = covered_readings(head.content_type, body)
        broken: dict[Reading, NotDecodableError] = {}
        for reading in readings:
            try:
                parameters = parse_body(reading, query, body)
            except NotDecodableError as error:
                broken[reading] = error
                continue
            auth_id = self._signer(head, parameters)
            if auth_id is not None:
                return _Read(parameters, reading, auth_id)
        auth_id = self._signer_v2(head) if self._accept_v2 else None
        if auth_id is not None:
            return _read_unsigned(head, query, body, auth_id)
        first = broken.get(readings[0])
        if first is not None and (len(broken) == len(readings) or looks_like(body) in (None, readings[0])):
            raise first
        return None

    def _signer(self, head: Head, parameters: Parameters) -> str | None:
        """The account that signed the request by V3; None where nobody did whose token is here."""
        headers, accounts = head.headers, self.accounts
        own = listed_values(headers.getall(SIGNATURE_V3, ()))
        mains = listed_values(headers.getall(SIGNATURE_MA_V3, ()))
        middles = v3_middles(head.method, parameters)  # which may take long, and is the same for all
        for nonce, base in product(listed_nonces(headers.getall(NONCE_V3, ())), _bases(head.base)):
            texts = v3_texts(base, middles, nonce)
            auth_id = signer(accounts.holders(head.account), texts, own) or signer(
                accounts.mains, texts, mains
            )
            if auth_id is not None:
                return auth_id
        return None

    def _signer_v2(self, head: Head) -> str | None:
        """The same by V2, which does not cover the parameters."""
        headers, accounts = head.headers, self.accounts
        nonces = listed_nonces(headers.getall(NONCE_V2, ()))
        texts = tuple(v2_text(base, nonce) for nonce, base in product(nonces, _bases(head.base)))
        return signer(
            accounts.holders(head.account), texts, listed_values(headers.getall(SIGNATURE_V2, ()))
        ) or signer(accounts.mains, texts, listed_values(headers.getall(SIGNATURE_MA_V2, ())))


def _read_unsigned(head: Head, query: Pairs, body: bytes, auth_id: str) -> _Read:
    """The request as what its look and its type say. Raises NotDecodableError."""
    broken = NotDecodableError("the body is neither a form nor JSON")
    for reading in uncovered_readings(head.content_type, body):
        try:
            return _Read(parse_body(reading, query, body), reading, auth_id)
        except NotDecodableError as error:
            broken = error
    raise broken


def _bears(headers: Headers, name: str) -> bool:
    return any(headers.getall(name, ()))


def _bases(base: str) -> tuple[str, str]:
    """The URLs that may have been dialled: as it was asked for, and for a proxy that adds or takes a slash."""
    return base, base[:-1] if base.endswith("/") else f"{base}/"


def _session_uuid(parameters: Parameters) -> str:
    """The session as the worker will read it: the first that is not null, the body's before the query's."""
    body = parameters.body
    if parameters.json and SESSION_UUID in parameters.json:
        body = parameter_pairs(Parameters([], [], {SESSION_UUID: parameters.json[SESSION_UUID]}))
    for pairs in (body, parameters.query):
        for name, text in pairs:
            if name == SESSION_UUID and not is_null(text):
                return text
    return ""
