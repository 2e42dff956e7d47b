"""An endpoint: what one table of MASKLINE_FORWARD_CONFIG means, once everything that it names was read and checked."""

import base64
import binascii
import re
import socket
import ssl
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from standardwebhooks import Webhook
from yarl import URL

from maskline.events import EVENT_TYPES, CallSummary, Event, RecordingEvent, StatusEvent, UnknownEvent
from maskline.handlers.webhooks.addresses import AddressPolicy, Network, read_allowed
from maskline.handlers.webhooks.table import EndpointTable
from maskline.schemas.errors import MasklineError
from maskline.schemas.forward_message import Numbers

SECRETS_MAX: Final = 2
"""The one in use, and the one before or after it while they are exchanged: each signs every message."""
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
"""Standard Webhooks asks for 24 to 64 bytes."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  what every secret begins with
FILE_BYTES_MAX: Final = 65_536
"""Of a file with a secret or a header's value; a larger one is the wrong file."""
URL_CHARS_MAX: Final = 2_048

FILTERS: Final[dict[str, type[Any]]] = {
    "*": Event,
    "StatusEvent": StatusEvent,
    "RecordingEvent": RecordingEvent,
    "UnknownEvent": UnknownEvent,
    "CallSummary": CallSummary,
    **EVENT_TYPES,
}
"""What `events` may list: every event of Plivo's, a family of them, call summaries, one event."""

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")
_HEADER_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,4094}[!-~])?\Z")
_OUR_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""They belong to the client: with `Expect`, for one, no request would go out before the receiver has asked for it."""
_OUR_PREFIXES: Final = ("maskline-", "webhook-")

_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\Z")
"""A name that DNS can have. The underscore is in no name of a host, but in some of Docker's."""

HIDDEN_CHARS_MIN: Final = 8
"""Of a part of a URL or a header that no error text shows. A shorter one is no secret, and stands in many a word."""
_PART_ENDS: Final = re.compile(r"[\s/?&=;,:\"']+")


class MistakeError(MasklineError):
    """A mistake in a table: `key: what is wrong`. It shows no value that may be a secret."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key}: {what}")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One endpoint that webhooks are sent to."""

    name: str
    url: URL
    types: tuple[type[Any], ...]
    """The types of events that it wants, as `@on` takes them."""
    numbers: Numbers
    signers: tuple[Webhook, ...]
    """One for each secret: a message has the signatures of all."""
    headers: dict[str, str]
    """Headers of every request beside those of the message."""
    tls: ssl.SSLContext | None
    """None for `http://`."""
    policy: AddressPolicy
    hidden: tuple[str, ...]
    """Texts that no error text may show: the URL's path and query and the values of `headers`, and their parts, since a
    receiver may complain of the token alone. Longest first."""
    timeout_ms: int
    concurrency: int | None
    rate: float | None
    retries: int | None
    give_up_after_s: float
    on_give_up: Literal["park", "skip"]

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"


def make_endpoint(table: EndpointTable, folder: Path) -> Endpoint:
    """The endpoint of a table. `folder`: what paths in the table are relative to.

    Raises MistakeError.
    """
    url = _read_url(table.url)
    allowed = tuple(_networks(table.allow_private))
    policy = AddressPolicy(allowed, public=url.scheme == "https")
    _check_host(url, policy)
    headers = dict(_headers(table, folder))
    return Endpoint(
        name=table.name,
        url=url,
        types=tuple(_types(table.events)),
        numbers=table.numbers,
        signers=tuple(Webhook(secret) for secret in _secrets(table, folder)),
        headers=headers,
        tls=_tls_context(table.ca_file, folder) if url.scheme == "https" else None,
        policy=policy,
        hidden=_hidden(url, headers),
        timeout_ms=table.timeout_ms,
        concurrency=table.concurrency,
        rate=table.rate,
        retries=table.retries,
        give_up_after_s=table.give_up_after_s,
        on_give_up=table.on_give_up,
    )


def _read_url(text: str) -> URL:
    try:
        url = URL(text)
        port = url.port  # raises for one that is none
    except ValueError:
        raise MistakeError("url", "it cannot be read") from None
    if url.scheme not in ("http", "https") or not url.host or not port:
        raise MistakeError("url", "it must begin with https:// and a host (http:// in private networks)")
    if len(text) > URL_CHARS_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise MistakeError("url", f"it must have at most {URL_CHARS_MAX} characters of ASCII, and no blank")
    if "@" in url.raw_authority:
        raise MistakeError("url", "it must have no user and password: write an Authorization header")
    if "#" in text:
        raise MistakeError("url", "it must have no fragment (#…)")
    return url


def _check_host(url: URL, policy: AddressPolicy) -> None:
    """Check an address that stands in the URL; that of a name is checked whenever it is connected to."""
    host = url.raw_host or ""
    if url.scheme == "http" and not policy.allow_private:
        raise MistakeError("url", "http:// is for private networks alone: list them in allow_private")
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        try:
            spelled = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            _check_name(host.removesuffix("."))
            return
        raise MistakeError("url", f"write the address as {spelled}") from None
    if (refusal := policy.refusal(host)) is not None:
        raise MistakeError("url", refusal)


def _check_name(host: str) -> None:
    """Check a host that is no address, without a full stop at its end."""
    if not _HOST.match(host) or host.rpartition(".")[2].isdigit():
        raise MistakeError("url", f"{host[:64]!r} is neither an address nor a name that DNS can have")


def _hidden(url: URL, headers: dict[str, str]) -> tuple[str, ...]:
    whole = {url.raw_path_qs, url.path_qs, url.raw_path, url.path, *headers.values()} - {"/"}
    parts = {part for text in whole for part in _PART_ENDS.split(text) if len(part) >= HIDDEN_CHARS_MIN}
    return tuple(sorted(whole | parts, key=len, reverse=True))


def _networks(texts: Iterable[str]) -> Iterator[Network]:
    for text in texts:
        try:
            yield read_allowed(text)
        except ValueError as error:
            raise MistakeError("allow_private", f"{text!r}: {error}") from None


def _types(names: Iterable[str]) -> Iterator[type[Any]]:
    for name in dict.fromkeys(names):
        if name not in FILTERS:
            raise MistakeError(
                "events", f"{name!r} is no event: {', '.join(list(FILTERS)[:5])}, or an event's name"
            )
        yield FILTERS[name]


def _secrets(table: EndpointTable, folder: Path) -> Iterator[str]:
    found = [("secrets", secret) for secret in table.secrets]
    found += [("secret_files", _file_text("secret_files", folder / name)) for name in table.secret_files]
    if not 1 <= len(found) <= SECRETS_MAX:
        raise MistakeError(
            "secret_files", f"there must be 1 secret, or {SECRETS_MAX} while rotating, not {len(found)}"
        )
    for key, secret in found:
        try:
            size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
        except (binascii.Error, ValueError):
            size = 0
        if not secret.startswith(SECRET_PREFIX) or not SECRET_BYTES_MIN <= size <= SECRET_BYTES_MAX:
            raise MistakeError(
                key,
                f"a secret must be {SECRET_PREFIX} and the Base64 of"
                f" {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes",
            )
        yield secret


def _headers(table: EndpointTable, folder: Path) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for name, given in table.headers.items():
        key = f"headers.{name}"
        value = given if isinstance(given, str) else _file_text(key, folder / given.file)
        lower = name.lower()
        if not _HEADER_NAME.match(name):
            raise MistakeError("headers", f"{name!r} cannot be the name of a header")
        if lower in _OUR_HEADERS or lower.startswith(_OUR_PREFIXES):
            raise MistakeError(key, "maskline sets this header itself")
        if lower in seen:
            raise MistakeError(key, "it is there already, in other letters")
        seen.add(lower)
        if not _HEADER_VALUE.match(value):
            raise MistakeError(key, "its value must be printable ASCII, at most 4,096 characters, not empty")
        yield name, value


def _tls_context(ca_file: str | None, folder: Path) -> ssl.SSLContext:
    if ca_file is None:
        return _system_tls_context()
    try:
        return ssl.create_default_context(cafile=folder / ca_file)
    except FileNotFoundError:
        raise MistakeError("ca_file", f"there is no file {ca_file}") from None
    except (ssl.SSLError, OSError):
        raise MistakeError("ca_file", f"{ca_file} has no certificates in PEM") from None


@cache
def _system_tls_context() -> ssl.SSLContext:
    """For all endpoints without `ca_file`: the system's certificates take long to read, and some memory."""
    return ssl.create_default_context()


def _file_text(key: str, path: Path) -> str:
    """The text of a file without the blanks, line breaks and the byte order mark around it."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise MistakeError(key, f"{path} has more than {FILE_BYTES_MAX} bytes")
        return content.removeprefix(BOM_UTF8).decode("ascii").strip()
    except OSError as error:
        raise MistakeError(key, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MistakeError(key, f"{path} has other characters than ASCII") from None
