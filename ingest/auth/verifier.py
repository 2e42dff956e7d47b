"""Decides whether a request is a callback to be stored, and what goes into which partition. Pure.

In two steps, so that a request is refused by its head, where that is enough, before its body is read:

| step | condition | otherwise refused as |
| --- | --- | --- |
| head | the path is `/callbacks` or `/callbacks/{auth_id}` (`ingest.auth.callback_paths`) | 404 `unknown_path` |
| head | the account of the path is configured | 404 `unknown_account` |
| head | the method is POST or GET | 405 `method_not_allowed` |
| head | the announced length is within MASKLINE_MAX_BODY_BYTES | 413 `body_too_large` |
| head | signature and nonce are there | 403 `signature_missing`, `nonce_missing` |
| body | parameters can be decoded, in one of the body's readings (`ingest.auth.body_readings`) | 400 `not_decodable` |
| body | the signature fits one of these readings | 403 `signature_wrong` |

Between the steps `ingest.parser.request_body` reads the body, and refuses one that is broken or too large.

Everything else is accepted, also a callback without SessionUUID or EventName: it was signed, so it is Plivo's, and the
worker makes it a dead letter for an operator to read.
"""

from collections.abc import Sequence
from itertools import product
from typing import Final, NamedTuple
from zlib import crc32

from maskline.ingest.auth.accounts import Accounts, signing_account
from maskline.ingest.auth.body_readings import signed_readings, unsigned_readings
from maskline.ingest.auth.callback_paths import PATH, account_of_path, explain_unknown_path
from maskline.ingest.auth.dialled_url import DialledUrl, Headers, split_absolute
from maskline.ingest.auth.signatures import (
    split_nonces,
    split_signatures,
    v2_signed_text,
    v3_parameter_texts,
    v3_signed_texts,
)
from maskline.ingest.parser.request_body import BODY_BROKEN, BODY_TOO_LARGE
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

CALLBACK_METHODS: Final = ("POST", "GET")

SESSION_UUID: Final = "SessionUUID"


class AcceptedCallback(NamedTuple):
    """A callback that is to be stored, and where."""

    partition_hash: int
    """The CRC-32 of the SessionUUID: its partition is `partition_hash % partitions` (schemas.keys.partition_of)."""
    value: bytes
    """The msgpack of a RawCallback: what the stream's entry holds."""


class CallbackHead(NamedTuple):
    """A request's head that was not refused: what the second step needs of it."""

    method: str
    base_url: str
    """`scheme://host[:port]/path` as dialled."""
    query: bytes
    content_type: str
    auth_id: str
    """The account of the path; empty for the common path."""
    headers: Headers


class _ReadCallback(NamedTuple):
    """The reading of a request that counts."""

    parameters: Parameters
    reading: Reading
    auth_id: str
    """The account whose token signed it; without verification, the account of the path."""


UNKNOWN_PATH: Final = "unknown_path"
"""The code of a refusal whose detail explains the path."""
UNKNOWN_ACCOUNT: Final = Refusal(404, "unknown_account", "this account is not configured here")
METHOD_NOT_ALLOWED: Final = Refusal(405, "method_not_allowed", "callbacks come by POST or GET")
SIGNATURE_MISSING: Final = Refusal(403, "signature_missing", f"the request has no {SIGNATURE_V3} header")
NONCE_MISSING: Final = Refusal(403, "nonce_missing", f"the request has no {NONCE_V3} header")
SIGNATURE_WRONG: Final = Refusal(403, "signature_wrong", "no token of ours makes this signature for this URL")


class CallbackVerifier:
    """Verifies requests against the settings: accounts and tokens, accepted schemes, the URL that Plivo dials."""

    __slots__ = ("_accept_v2", "_max_body_bytes", "accounts", "dialled_url", "verifies")

    def __init__(self, settings: Settings) -> None:
        self.accounts = Accounts(settings.auth_tokens)
        self.verifies = settings.verify != "off"
        """Whether signatures are checked at all (MASKLINE_VERIFY)."""
        self._accept_v2 = settings.accept_v2
        self._max_body_bytes = settings.max_body_bytes
        self.dialled_url = DialledUrl(settings.public_url, settings.trusted_proxies)

    def check_head(
        self,
        method: str,
        target: str,
        headers: Headers,
        *,
        content_length: int = 0,
        peer: str = "",
        any_path: bool = False,
    ) -> CallbackHead | Refusal:
        """First step: refuse a request whose head alone shows that it is no callback.

        `content_length`: the announced length of the body, 0 for none. `peer`: the address of the connection's other
        end, needed where `dialled_url.depends_on_peer`. `any_path`: a path that is none of ours counts as the common
        one, as the signature covers it anyway.
        """
        authority = ""
        if not target.startswith("/"):
            authority, target = split_absolute(target)
        if "#" in target:  # no part of a request target, but clients are known to leave it on
            target = target.partition("#")[0]
        path, _, query = target.partition("?")
        auth_id = "" if path == PATH else account_of_path(path)
        if auth_id is None:
            if not any_path:
                return Refusal(404, UNKNOWN_PATH, *explain_unknown_path(path))
            auth_id = ""
        if auth_id and not self.accounts.knows(auth_id):
            return UNKNOWN_ACCOUNT
        if method not in CALLBACK_METHODS:
            return METHOD_NOT_ALLOWED
        if content_length > self._max_body_bytes:
            return BODY_TOO_LARGE
        if self.verifies and (refusal := self._check_signature_headers(headers)):
            return refusal
        return CallbackHead(
            method,
            self.dialled_url.base_url(authority, path, headers, peer),
            query.encode("utf-8", "surrogateescape"),
            headers.get("Content-Type", ""),
            auth_id,
            headers,
        )

    def verify(self, head: CallbackHead, body: bytes, received_at_ms: int) -> AcceptedCallback | Refusal:
        """Second step: check the signature over the whole request, find its partition, encode it for the stream.

        `body`: complete and decompressed. `received_at_ms`: Unix time in milliseconds.
        """
        if head.method == "GET":
            body = b""  # the signature does not cover it
        try:
            query = parse_pairs(head.query)
            read = (
                self._read_signed(head, query, body)
                if self.verifies
                else _read_unsigned(head, query, body, head.auth_id)
            )
            if read is None:
                return SIGNATURE_WRONG
            session_uuid = _session_uuid(read.parameters)
        except NotDecodableError as error:
            return Refusal(400, "not_decodable", str(error))
        # Without a session it becomes a dead letter: in any partition, but the same callback always in the same one.
        partition_hash = crc32(session_uuid.encode()) if session_uuid else crc32(body, crc32(head.query))
        content_type = type_naming(read.reading, head.content_type) if body else in_ascii(head.content_type)
        value = encode_callback(
            RawCallback(head.method, head.query, content_type, body, received_at_ms, read.auth_id)
        )
        return AcceptedCallback(partition_hash, value)

    def verify_any(
        self, head: CallbackHead, contents: Sequence[bytes | Refusal], received_at_ms: int
    ) -> tuple[AcceptedCallback | Refusal, bytes]:
        """Second step for a body that may hold one of several contents, and which of them counts.

        `contents`: as `BodyReader.contents` has them. The first that is accepted counts; where none is, the refusal of
        the first.
        """
        first_refusal: Refusal | None = None
        for content in contents:
            decision = content if isinstance(content, Refusal) else self.verify(head, content, received_at_ms)
            if not isinstance(content, Refusal) and isinstance(decision, AcceptedCallback):
                return decision, content
            if isinstance(decision, Refusal):
                first_refusal = first_refusal or decision
        return first_refusal or BODY_BROKEN, b""

    def _check_signature_headers(self, headers: Headers) -> Refusal | None:
        if bears_v3_signature(headers):
            return None
        bears_signature = _has(headers, SIGNATURE_V3) or _has(headers, SIGNATURE_MA_V3)
        refusal = NONCE_MISSING if bears_signature else SIGNATURE_MISSING
        if self._accept_v2 and (_has(headers, SIGNATURE_V2) or _has(headers, SIGNATURE_MA_V2)):
            return None if _has(headers, NONCE_V2) else NONCE_MISSING
        return refusal

    def _read_signed(self, head: CallbackHead, query: Pairs, body: bytes) -> _ReadCallback | None:
        """The reading that the signature fits; None where it fits none.

        Raises NotDecodableError where the signature fits none and the body cannot be decoded as what it seems to be.
        """
        readings = signed_readings(head.content_type, body)
        errors: dict[Reading, NotDecodableError] = {}
        for reading in readings:
            try:
                parameters = parse_body(reading, query, body)
            except NotDecodableError as error:
                errors[reading] = error
                continue
            auth_id = self._signer_v3(head, parameters)
            if auth_id is not None:
                return _ReadCallback(parameters, reading, auth_id)
        auth_id = self._signer_v2(head) if self._accept_v2 else None
        if auth_id is not None:
            return _read_unsigned(head, query, body, auth_id)
        first = errors.get(readings[0])
        if first is not None and (len(errors) == len(readings) or looks_like(body) in (None, readings[0])):
            raise first
        return None

    def _signer_v3(self, head: CallbackHead, parameters: Parameters) -> str | None:
        """The account that signed the request by V3; None where none of the configured ones did."""
        headers, accounts = head.headers, self.accounts
        own = split_signatures(headers.getall(SIGNATURE_V3, ()))
        mains = split_signatures(headers.getall(SIGNATURE_MA_V3, ()))
        # Made once: it may take long, and is the same for every nonce and URL.
        parameter_texts = v3_parameter_texts(head.method, parameters)
        nonces = split_nonces(headers.getall(NONCE_V3, ()))
        for nonce, base_url in product(nonces, _possible_urls(head.base_url)):
            texts = v3_signed_texts(base_url, parameter_texts, nonce)
            auth_id = signing_account(accounts.credentials(head.auth_id), texts, own) or signing_account(
                accounts.main_credentials, texts, mains
            )
            if auth_id is not None:
                return auth_id
        return None

    def _signer_v2(self, head: CallbackHead) -> str | None:
        """The account that signed the request by V2, which does not cover the parameters; None as above."""
        headers, accounts = head.headers, self.accounts
        own = split_signatures(headers.getall(SIGNATURE_V2, ()))
        mains = split_signatures(headers.getall(SIGNATURE_MA_V2, ()))
        nonces = split_nonces(headers.getall(NONCE_V2, ()))
        texts = tuple(
            v2_signed_text(base_url, nonce)
            for nonce, base_url in product(nonces, _possible_urls(head.base_url))
        )
        return signing_account(accounts.credentials(head.auth_id), texts, own) or signing_account(
            accounts.main_credentials, texts, mains
        )


def bears_v3_signature(headers: Headers) -> bool:
    """Whether a V3 signature and its nonce are there, right or wrong."""
    return _has(headers, NONCE_V3) and (_has(headers, SIGNATURE_V3) or _has(headers, SIGNATURE_MA_V3))


def _has(headers: Headers, name: str) -> bool:
    return any(headers.getall(name, ()))


def _read_unsigned(head: CallbackHead, query: Pairs, body: bytes, auth_id: str) -> _ReadCallback:
    """The reading that the body's beginning and type suggest. Raises NotDecodableError where there is none."""
    last_error = NotDecodableError("the body is neither a form nor JSON")
    for reading in unsigned_readings(head.content_type, body):
        try:
            return _ReadCallback(parse_body(reading, query, body), reading, auth_id)
        except NotDecodableError as error:
            last_error = error
    raise last_error


def _possible_urls(base_url: str) -> tuple[str, str]:
    """The URLs that may have been dialled: this one, and for a proxy that adds or removes a slash, the other."""
    return base_url, base_url[:-1] if base_url.endswith("/") else f"{base_url}/"


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
