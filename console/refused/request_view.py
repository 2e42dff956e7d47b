"""What commands say about a refused request: never a phone number, only its token."""

from typing import Final, NamedTuple

from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.plivo_headers import ALL
from maskline.ingest.refused.request import RefusedRequest
from maskline.schemas.decode import parameter_pairs
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import Pairs, parse_parameters
from maskline.schemas.privacy import redact
from maskline.schemas.values import is_null

PATH_MAX_CHARS: Final = 200


class RequestView(NamedTuple):
    """A refused request as far as it can be read without its signature."""

    method: str
    path: str
    """Without the query, at most PATH_MAX_CHARS of it."""
    headers: dict[str, str]
    """Those that are kept, by name, but Plivo's: Host, Content-Type and so on."""
    signature_headers: list[str]
    """The names of Plivo's headers that the request bears."""
    parameters: Pairs | None
    """Names and values as they came; None where they cannot be read."""

    def first(self, name: str) -> str | None:
        """The first value of a parameter that is not null."""
        return next(
            (value for each, value in self.parameters or () if each == name and not is_null(value)), None
        )


def shown_text(text: str) -> str:
    """A text of a head without phone numbers; what is no UTF-8 as an escape, as JSON has no such text."""
    return redact(text).encode("utf-8", "backslashreplace").decode()


UNREADABLE: Final = RequestView("?", "?", {}, [], None)


def view_of(request: RefusedRequest) -> RequestView:
    """Read a refused request for an operator."""
    head = read_head(request.head)
    if not isinstance(head, RequestHead):
        return UNREADABLE
    path, _, query = head.target.partition("?")
    try:
        parameters = parameter_pairs(
            parse_parameters(
                head.method,
                query.encode("utf-8", "surrogateescape"),
                head.headers.get("Content-Type", ""),
                request.body,
            )
        )
    except NotDecodableError:
        parameters = None
    signature_names = {name.lower() for name in ALL}
    return RequestView(
        head.method,
        shown_text(path)[:PATH_MAX_CHARS],
        {
            name: shown_text(value)
            for name, value in head.headers.items()
            if name.lower() not in signature_names
        },
        [name for name in ALL if name in head.headers],
        parameters,
    )
