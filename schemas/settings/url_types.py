"""Kinds of settings that are URLs, and how an error line or a table hides the secrets in one."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from maskline.schemas.settings.value_types import WHOLE, Kind


def _read_http_url(text: str) -> str:
    text = text.strip()
    url = _split_url(text)
    if (
        url.scheme not in {"http", "https"}
        or not url.hostname
        or not text.isascii()
        or not text.isprintable()
    ):
        raise ValueError
    if " " in text or "?" in text or "#" in text:
        raise ValueError("it has a query, a fragment or a space")
    if "@" in text:
        raise ValueError("it has a user name, or an @ for another reason")
    return f"{url.scheme}{text[len(url.scheme) :]}".rstrip("/")  # Plivo's SDK signs the scheme in lower case


def _read_public_url(text: str) -> str:
    base = _read_http_url(text)
    if re.search(r"/callbacks(/[^/]*)?\Z", base):
        raise ValueError("leave /callbacks and what follows away")
    return base


def _split_url(text: str) -> SplitResult:
    """Split a URL. Raises ValueError with a text of our own: urllib's may repeat a password."""
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - raises ValueError for a port that is none
    except ValueError:
        raise ValueError("host and port cannot be read") from None
    if "[" in (host := url.netloc.rpartition("@")[2]) and not host.startswith("["):
        # Before Python 3.11.9 urllib takes `user:password[::1]`, a password whose @ is missing, for a host.
        raise ValueError("host and port cannot be read")
    return url


PUBLIC_URL: Final = Kind("the start of a URL such as https://hooks.example.com", _read_public_url)
API_URL: Final = Kind("the start of a URL such as https://api.example.com", _read_http_url)


REDIS_SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)


def _read_redis_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in REDIS_SCHEMES:
        raise ValueError
    if not text.isprintable() or " " in text:
        raise ValueError("it has a space or a control character in it")
    if scheme == "unix":
        if not rest.rpartition("@")[2].startswith("/"):
            raise ValueError("unix:// needs an absolute path")
        return text
    # Not by urllib: it takes one host, and some versions refuse a list with an IPv6 address in it.
    netloc, _, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    hosts = netloc.rpartition("@")[2]
    if not hosts:
        raise ValueError("it names no host")
    for host in hosts.split(","):
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+(%[\w.%-]+)?\]|[^\[\]:]+)(:[0-9]{1,5})?", host):
            raise ValueError("host and port cannot be read (special characters in a password stand as %XX)")
    path = path.strip("/")
    if scheme.endswith("+sentinel"):
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("redis+sentinel:// needs a service: host:port,host:port/service")
    elif "," in hosts and not scheme.endswith("+cluster"):
        raise ValueError("several hosts need redis+cluster:// or redis+sentinel://")
    if path and not WHOLE.match(path):
        raise ValueError("what follows the host is the number of a database")
    return text


def hide_password(url: str) -> str:
    """A URL of Redis or PostgreSQL without its secrets. Errs on the side of hiding: a password may hold any sign."""
    scheme, separator, rest = url.partition("://")
    if "password" in rest.lower() or not separator:
        return f"{scheme}://***" if separator else "***"
    return f"{scheme}://***@{rest.rpartition('@')[2]}" if "@" in rest else url


_PORT_OF_WORDS: Final = re.compile(r":/{1,2}[^:/?#\[]*:(?![0-9]{0,5}(?:[/?#]|$))")
"""A user and a password whose @ is missing. There is one slash where the URL was normalised as a path."""
_TOKEN_PAIR: Final = re.compile(r"\b([MS]A[A-Z0-9]*):[^,\s]*")


def hide_secrets(text: str) -> str:
    """A wrong value or path for an error line, without parts that may be a secret in the wrong place.

    The text before an @, the query of a URL, and tokens behind their auth_id are hidden. The rest is shown, so that the
    operator recognises the mistake.
    """
    scheme, separator, _ = text.partition("://")
    start = f"{scheme}://" if separator else ""
    before, at, after = text.rpartition("@")
    if ("?" in text and (before or start)) or _PORT_OF_WORDS.search(text):
        text = f"{start}***"
    elif at:
        text = f"{start}***@{after}"
    return _TOKEN_PAIR.sub(r"\1:***", text)


REDIS_URL: Final = Kind(
    "a Redis URL (" + ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES) + ")",
    _read_redis_url,
    show=hide_password,
    secret=True,
)
