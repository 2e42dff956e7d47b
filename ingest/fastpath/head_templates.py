"""Recognises request heads by templates: what the fast path needs of a head, without parsing it. Pure.

A sender gives all its callbacks the same headers in the same order; lengths, signatures and perhaps a tracing header
differ. So a head that ingest.parser.request_head has read is turned into a template, a regular expression of itself:

| part of the head | in the expression |
| --- | --- |
| target, Content-Length, V3 signatures and nonce | captured: printable characters, blanks only between signatures |
| headers by which HTTP or the verifier decides something (`_DECISIVE`) | as they are, byte by byte |
| names and order of all headers | as they are |
| other headers' values | anything printable |

A head that fits therefore differs from the remembered one only in what is captured and in what nobody reads: the parser
would read it the same. Only heads of requests with a valid signature are learned, so nobody else can fill the memory.
Measured on Plivo-like heads of 350 bytes: 1.2 µs; parsing one takes twenty times that.
"""

import re
from typing import Final

from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.plivo_headers import NONCE_V3, SIGNATURE_MA_V3, SIGNATURE_V3

HEAD_TEMPLATES_MAX: Final = 8
"""Senders with heads of their own. Each template that does not fit costs a third of a microsecond to try."""
LEARN_AFTER: Final = 64
"""A template is compiled once its head was seen this often: compiling takes as long as fifty parsings."""
CANDIDATES_MAX: Final = 256
"""Templates that are counted and not yet compiled. Beyond it, counting begins anew."""

_SIGNATURE_LIST: Final = "[!-~](?:[ -~]*[!-~])?"
"""One signature, or several with commas and blanks between."""

_CAPTURED: Final = {
    b"content-length": "(?P<length>0|[1-9][0-9]{0,8})",
    SIGNATURE_V3.lower().encode(): f"(?P<signature>{_SIGNATURE_LIST})",
    SIGNATURE_MA_V3.lower().encode(): f"(?P<main_signature>{_SIGNATURE_LIST})",
    NONCE_V3.lower().encode(): "(?P<nonce>[!-~]+)",
}
_TARGET: Final = "(?P<target>[!-~]+)"
GROUPS: Final = ("target", "length", "signature", "main_signature", "nonce")
"""What a match captures, in the order of `HeadTemplate.groups`; empty where the head has no such header."""

_DECISIVE: Final = frozenset(
    {b"host", b"content-type", b"connection", b"x-forwarded-proto", b"x-forwarded-host"}
)
"""Beside those that keep a head off the fast path (_NEVER_FAST)."""
_NEVER_FAST: Final = ("Transfer-Encoding", "Content-Encoding", "Expect")
_ANYTHING_PRINTABLE: Final = "[ -~]*"


class HeadTemplate:
    """What the heads of one sender have in common. `match` finds it at the beginning of some bytes."""

    __slots__ = ("groups", "match")

    def __init__(self, pattern: str) -> None:
        compiled = re.compile(pattern.encode())
        self.match = compiled.match
        self.groups = tuple(compiled.groupindex[name] for name in GROUPS)
        """The numbers of the GROUPS, for `Match.group`."""


class HeadTemplates:
    """The head templates of one FastVerifier, the newest first."""

    __slots__ = ("_candidates", "templates")

    def __init__(self) -> None:
        self.templates: list[HeadTemplate] = []
        self._candidates: dict[str, int] = {}
        """How often each pattern was seen."""

    def find(self, data: bytes) -> HeadTemplate | None:
        """The template of the head that these bytes begin with."""
        for template in self.templates:
            if template.match(data):
                return template
        return None

    def learn(self, head: RequestHead) -> None:
        """Count the head of a request whose signature was good; compile its template once it has come often."""
        pattern = _pattern(head)
        if pattern is None:
            return
        seen = self._candidates.pop(pattern, 0) + 1
        if seen == LEARN_AFTER:
            template = HeadTemplate(pattern)
            if template.match(head.raw):
                # The newest first: a sender that changed its headers no longer sends the old ones.
                self.templates = [template, *self.templates[: HEAD_TEMPLATES_MAX - 1]]
                return
            # A tab in a value, or the like: it would never match, so it must not displace another, again and again.
        if len(self._candidates) >= CANDIDATES_MAX:
            self._candidates.clear()
        self._candidates[pattern] = seen


def fits_fast_path(head: RequestHead) -> bool:
    """Whether it is a POST over HTTP/1.1 that keeps the connection and announces its body's length, once."""
    headers = head.headers
    return (
        head.method == "POST"
        and head.keep_alive
        and head.unchanged
        and "Content-Length" in headers
        and not any(name in headers for name in _NEVER_FAST)
    )


def _pattern(head: RequestHead) -> str | None:
    """The regular expression of a head; None for a head that is not written as expected."""
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
            if missing.pop(_group_of(captured), None) is None:  # a second line of it
                return None
            value = captured
        elif lowered in _DECISIVE:
            value = re.escape(value)
        else:
            value = _ANYTHING_PRINTABLE
        lines.append(f"{re.escape(name)}: {value}")
    return "\r\n".join([*lines, "", ""]) + "".join(missing.values())


def _group_of(captured: str) -> str:
    return captured.removeprefix("(?P<").partition(">")[0]
