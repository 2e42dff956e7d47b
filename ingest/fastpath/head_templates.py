"""Heads by their layout: what is needed of a request's head, without parsing it. Pure.

Whoever sends callbacks sends them all with the same headers in the same order; lengths, signatures and perhaps a
tracing header differ. So a head that ingest.parser.request_head has read is remembered as a regular expression of
itself:

| part of the head | in the expression |
| --- | --- |
| target, Content-Length, V3 signatures and nonce | printable characters, captured; blanks only between signatures |
| headers by which HTTP or we decide something (`_DECIDING`) | as they are, byte by byte |
| names and order of all headers | as they are |
| other headers' values | anything printable |

A head that fits is therefore the remembered one but for what was captured, and for what nobody looks at: the reader
would say the same of it. Remembered are only heads of requests that bore a valid signature, so nobody else can fill
the memory. Measured on Plivo-like heads of 350 bytes: 1.2 µs; reading one takes twenty times that.
"""

import re
from typing import Final

from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.plivo_headers import NONCE_V3, SIGNATURE_MA_V3, SIGNATURE_V3

KNOWN_MAX: Final = 8
"""Senders with heads of their own; each that does not fit costs a third of a microsecond to find out."""
LEARN_AFTER: Final = 64
"""A layout is compiled when it was seen so often: compiling takes as long as fifty parsings."""
SEEN_MAX: Final = 256
"""Layouts that are counted and not compiled. When they are too many, counting begins anew."""

_LISTED: Final = "[!-~](?:[ -~]*[!-~])?"
"""Signatures, which may be several with blanks between."""

_CAPTURED: Final = {
    b"content-length": "(?P<length>[0-9]{1,9})",
    SIGNATURE_V3.lower().encode(): f"(?P<signature>{_LISTED})",
    SIGNATURE_MA_V3.lower().encode(): f"(?P<main_signature>{_LISTED})",
    NONCE_V3.lower().encode(): "(?P<nonce>[!-~]+)",
}
_TARGET: Final = "(?P<target>[!-~]+)"
GROUPS: Final = ("target", "length", "signature", "main_signature", "nonce")
"""What a match captures, in the order of `HeadTemplate.groups`; empty where the layout has no such header."""

_DECIDING: Final = frozenset(
    {b"host", b"content-type", b"connection", b"x-forwarded-proto", b"x-forwarded-host"}
)
"""Besides those that an ordinary head has not got."""
_ODD: Final = ("Transfer-Encoding", "Content-Encoding", "Expect")
"""Headers by which a request is none of the ordinary."""
_ANYTHING: Final = "[ -~]*"


class HeadTemplate:
    """What the heads of one sender have in common. `match` finds it at the beginning of some bytes."""

    __slots__ = ("groups", "match")

    def __init__(self, pattern: str) -> None:
        compiled = re.compile(pattern.encode())
        self.match = compiled.match
        self.groups = tuple(compiled.groupindex[name] for name in GROUPS)


class HeadTemplates:
    """The layouts known to one process."""

    __slots__ = ("_seen", "known")

    def __init__(self) -> None:
        self.known: list[HeadTemplate] = []
        self._seen: dict[str, int] = {}

    def find(self, data: bytes) -> HeadTemplate | None:
        """The layout of the head that these bytes begin with."""
        for layout in self.known:
            if layout.match(data):
                return layout
        return None

    def learn(self, head: RequestHead) -> None:
        """Count the head of a request whose signature was good; remember its layout when it comes often."""
        pattern = _pattern(head)
        if pattern is None:
            return
        seen = self._seen.pop(pattern, 0) + 1
        if seen == LEARN_AFTER:
            layout = HeadTemplate(pattern)
            if layout.match(head.raw):
                # The newest first: a sender that changed its headers no longer sends the old ones.
                self.known = [layout, *self.known[: KNOWN_MAX - 1]]
                return
            # A tab in a value, or the like: never to be found, so it must not take another's place, again and again.
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[pattern] = seen


def is_ordinary(head: RequestHead) -> bool:
    """Whether it is a POST over HTTP/1.1 that keeps the connection and says how long its body is, once."""
    headers = head.headers
    return (
        head.method == "POST" and head.keep_alive and head.unchanged and "Content-Length" in headers
        and not any(name in headers for name in _ODD)
    )  # fmt: skip


def _pattern(head: RequestHead) -> str | None:
    """The expression of a head; None for one that is not written as expected."""
    lines = [f"POST {_TARGET} HTTP/1\\.1"]
    missing = {name: f"(?P<{name}>)" for name in GROUPS[1:]}
    for line in head.raw.removesuffix(HEAD_END).split(b"\r\n")[1:]:
        if not line.isascii():
            return None
        name, separator, value = line.decode().partition(": ")
        if not separator:
            return None
        lowered = name.lower().encode()
        if (captured := _CAPTURED.get(lowered)) is not None:
            if missing.pop(_group_of(captured), None) is None:  # two lines of it
                return None
            value = captured
        elif lowered in _DECIDING:
            value = re.escape(value)
        else:
            value = _ANYTHING
        lines.append(f"{re.escape(name)}: {value}")
    return "\r\n".join([*lines, "", ""]) + "".join(missing.values())


def _group_of(captured: str) -> str:
    return captured.removeprefix("(?P<").partition(">")[0]
