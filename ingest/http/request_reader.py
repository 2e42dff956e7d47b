"""Takes requests out of a connection's bytes, off the fast path: framing, and refusals by the head. Pure.

A request is taken out by itself, so the bytes after it never change how it is read. `read` returns None while a request
is incomplete:

| incomplete | `unread` | `awaited_head` |
| --- | --- | --- |
| nothing of a request, or blank lines | empty, or an incomplete blank line | None |
| its head has begun | the head so far | None |
| its body is awaited | empty | its head |

A request that is refused by its head is complete with it, unless `awaits_body` asks for its body.
"""

from collections.abc import Callable
from typing import NamedTuple

from maskline.ingest.auth.verifier import CallbackHead
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_body import BodyReader
from maskline.ingest.parser.request_head import (
    HEAD_MAX_BYTES,
    HEAD_TOO_LARGE,
    RequestHead,
    check_incomplete_head,
    read_head,
    skip_blank_lines,
)
from maskline.ingest.refusal import Refusal


class ReceivedRequest(NamedTuple):
    """A request that can be decided."""

    head: RequestHead | None
    """None where it could not be read."""
    checked: CallbackHead | Refusal
    """The verifier's first step; or why the request could not be read as HTTP."""
    contents: list[bytes | Refusal]
    """What its body may hold, the likeliest first, and as it came, last (BodyReader.contents); empty where it was not
    read to its end."""
    rest: bytes | None
    """The bytes after it; None where the connection cannot go on."""


class RequestReader:
    """Reads the requests of one connection, one after the other.

    `check_head`: the verifier's first step. `max_body_bytes`: MASKLINE_MAX_BODY_BYTES. `awaits_body`: whether the body
    of a request that its head has refused is to be read all the same.
    """

    __slots__ = (
        "_awaits_body",
        "_body",
        "_check_head",
        "_checked",
        "_checked_bytes",
        "_max_body_bytes",
        "awaited_head",
        "unread",
    )

    def __init__(
        self,
        check_head: Callable[[RequestHead], CallbackHead | Refusal],
        max_body_bytes: int,
        awaits_body: Callable[[Refusal, RequestHead], bool],
    ) -> None:
        self._check_head = check_head
        self._awaits_body = awaits_body
        self._max_body_bytes = max_body_bytes
        self._checked_bytes = 0
        """How many bytes of an incomplete head are whole lines that were checked."""
        self._checked: CallbackHead | Refusal | None = None
        self._body: BodyReader | None = None
        self.awaited_head: RequestHead | None = None
        """The head of the request whose body is awaited."""
        self.unread = b""
        """The bytes to give to `read` again, before those that come next."""

    @property
    def head_refusal(self) -> Refusal | None:
        """Why the request whose body is awaited is refused whatever comes; None where that is open."""
        return self._checked if isinstance(self._checked, Refusal) else None

    def read(self, data: bytes) -> ReceivedRequest | None:
        """Take the next request out of `data`: what was `unread`, and all that has come since."""
        self.unread = b""
        if self._body is not None and self._checked is not None and self.awaited_head is not None:
            return self._read_body(self.awaited_head, self._checked, self._body, data)
        data = skip_blank_lines(data)
        body_begin = data.find(HEAD_END, max(0, self._checked_bytes - len(HEAD_END))) + len(HEAD_END)
        if body_begin < len(HEAD_END):
            return self._await_head(data)
        self._checked_bytes = 0
        head = HEAD_TOO_LARGE if body_begin > HEAD_MAX_BYTES else read_head(data[:body_begin])
        if isinstance(head, Refusal):
            return ReceivedRequest(None, head, [], None)
        body = BodyReader(head, self._max_body_bytes)
        return self._read_body(head, self._check_head(head), body, data[body_begin:])

    def forget_incomplete_head(self) -> None:
        """Read the next bytes as the beginning of another request."""
        self._checked_bytes = 0

    def _await_head(self, data: bytes) -> ReceivedRequest | None:
        checked_bytes = check_incomplete_head(data, self._checked_bytes)
        if isinstance(checked_bytes, Refusal):
            self._checked_bytes = 0
            return ReceivedRequest(None, checked_bytes, [], None)
        self._checked_bytes = checked_bytes
        self.unread = data
        return None

    def _read_body(
        self, head: RequestHead, checked: CallbackHead | Refusal, body: BodyReader, data: bytes
    ) -> ReceivedRequest | None:
        rest = body.feed(data)
        reads_body = not isinstance(checked, Refusal) or self._awaits_body(checked, head)
        if rest is None and reads_body:
            self.awaited_head, self._checked, self._body = head, checked, body
            return None
        self.awaited_head = self._checked = self._body = None
        next_bytes = rest if isinstance(rest, bytes) and head.keep_alive else None
        if isinstance(rest, Refusal):
            return ReceivedRequest(head, checked if isinstance(checked, Refusal) else rest, [], None)
        return ReceivedRequest(head, checked, body.contents() if reads_body else [], next_bytes)
