"""What ingest uses of aiohttp without a promise of its makers: its parser by itself.

`aiohttp.http.HttpRequestParser` stands in its package's `__all__` and in no documentation. It is tried when the process
starts, on what it must be able to do; where it is not there or does something else, aiohttp serves every request, and
all that ingest.connection wins is lost.
"""

from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11

from ingest.intake import LENGTH_DIGITS_MAX
from ingest.origin import Headers

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
            or len(lengths) != 1 or len(lengths[0]) > LENGTH_DIGITS_MAX
            or not (lengths[0].isascii() and lengths[0].isdecimal())
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


heads: Final = tried_heads()
