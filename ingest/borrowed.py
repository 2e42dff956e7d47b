"""What ingest uses of other packages without a promise of theirs: aiohttp's parser by itself, yarl's unquoter.

Both are only ways to be faster. They are tried when the process starts, on what they must be able to do; where one
is not there or does something else, all goes on without it.

| borrowed | instead | measured |
| --- | --- | --- |
| `aiohttp.http.HttpRequestParser`: in its package's `__all__`, in no documentation | `read_head` is None | (1) |
| `yarl._quoting._Unquoter`: the C code behind `URL.query`, which makes a mapping besides | `unquote_plus` | (2) |

(1) Without it aiohttp serves every request: all that ingest.connection wins is lost. (2) A body of 270 bytes with
four escapes: 0.5 µs instead of 2.0.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11

from ingest.origin import Headers
from schemas.parameters import unquote_plus

HEAD_MAX_BYTES: Final = 16_384
"""Of a whole head; ingest.server allows as much for each of its lines, so no line here is too long for it."""
HEADERS_MAX: Final = 128

END: Final = b"\r\n\r\n"
"""Of a head."""

_ODD: Final = ("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade", "Trailer", "Proxy-Connection")
"""Headers by which a request is none of the ordinary."""


class OrdinaryHead(NamedTuple):
    """The head of a POST over HTTP/1.1 that keeps the connection and says how long its body is."""

    target: str
    headers: Headers
    length: int
    """Of the body."""
    lines: list[bytes]
    """All of it, the request line first."""


class _Nobody:
    """What the parser takes for its connection, and for its loop: nothing waits for the body here."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


class Heads:
    """Reads heads, each with a parser of its own: nothing of one request can be left for the next."""

    def __init__(self) -> None:
        from aiohttp.http import HttpRequestParser  # noqa: PLC0415 - where it is not there, we are told so here

        self._make: Any = HttpRequestParser
        self._nobody = _Nobody()

    def read(self, head: bytes) -> OrdinaryHead | None:
        """Read a head, blank line included; None for all that is not an ordinary one, or not one at all."""
        messages = self._parse(head)
        if messages is None or len(messages) != 1:
            return None
        message = messages[0][0]
        headers, lengths = message.headers, message.headers.getall("Content-Length", ())
        if (
            message.method != "POST" or message.version != HttpVersion11
            or message.should_close or message.upgrade or message.chunked or message.compression
            or len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdecimal())
            or any(name in headers for name in _ODD)
        ):  # fmt: skip
            return None
        lines = head[: -len(END)].split(b"\r\n")
        if lines[0] != f"POST {message.path} HTTP/1.1".encode("utf-8", "surrogateescape"):
            return None
        if not _are_lines(lines[1:], message.raw_headers):
            return None
        return OrdinaryHead(message.path, headers, int(lengths[0]), lines)

    def breaks_off(self, beginning: bytes) -> bool:
        """Whether a head that begins so cannot become one."""
        messages = self._parse(beginning)
        return messages is None or len(messages) > 0

    def _parse(self, data: bytes) -> Any:
        parser = self._make(
            self._nobody, self._nobody, HEAD_MAX_BYTES,
            max_line_size=HEAD_MAX_BYTES, max_field_size=HEAD_MAX_BYTES, max_headers=HEADERS_MAX,
        )  # fmt: skip
        try:
            messages, upgraded, _ = parser.feed_data(data)
        except Exception:  # noqa: BLE001 - whatever it is, aiohttp will say it to the client
            return None
        return None if upgraded else messages


def _are_lines(lines: list[bytes], headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether the parser saw the lines that we see: then it ends the head where we do."""
    return len(lines) == len(headers) and all(
        line.startswith(name + b":") and line[len(name) + 1 :].strip(b" \t") == value
        for line, (name, value) in zip(lines, headers, strict=True)
    )


def tried_heads() -> Heads | None:
    """The reader, if it reads what it is given."""
    lines = [b"POST /a?b HTTP/1.1", b"Host: h", b"Content-Length: 7"]
    try:
        heads = Heads()
        head = heads.read(b"\r\n".join(lines) + END)
        chunked = heads.read(b"\r\n".join([*lines[:2], b"Transfer-Encoding: chunked"]) + END)
        broken = heads.breaks_off(lines[0] + b"\r\nno header\r\n")
        begun = not heads.breaks_off(lines[0] + b"\r\nHo")
    except Exception:  # noqa: BLE001 - not there, or it wants something else
        return None
    right = head is not None and (head.target, head.length, head.lines) == ("/a?b", 7, lines)
    return heads if right and chunked is None and broken and begun else None


_NO_TEXT: Final = ("%ff", "%C3", "%C3a%A9", "%ED%A0%80", "%C0%AF", "%4", "%zz", "%")


def tried_unquoter() -> Callable[[str], str] | None:
    """The unquoter, if it unquotes; of what is no UTF-8 or no escape it must leave the `%`."""
    try:
        from yarl._quoting import _Unquoter  # noqa: PLC0415 - as above

        unquoter: Callable[[str], str] = _Unquoter(plus=True)
        texts = [unquoter(text) for text in ("a+b%2B%2b=%C3%A9&%3a", "é+", *_NO_TEXT)]
    except Exception:  # noqa: BLE001 - as above
        return None
    return unquoter if texts == ["a b++=é&:", "é ", *_NO_TEXT] else None


heads: Final = tried_heads()
unquote: Final = tried_unquoter() or unquote_plus
"""Percent-decodes, `+` being a blank. What is no UTF-8 keeps its `%`, or raises UnicodeDecodeError."""
