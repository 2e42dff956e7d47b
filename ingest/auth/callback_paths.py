"""Which paths are ours, and what is said of those that nearly are. Pure.

| path, percent-decoded, without slashes at its end | account |
| --- | --- |
| `/callbacks` | any that is configured |
| `/callbacks/{auth_id}` | that one |
| `…/callbacks`, `…/callbacks/{auth_id}` | none: a proxy did not strip its prefix, which the answer says |

So much is read to find out whose callback it is. A signature covers the path as it was dialled.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

PATH: Final = "/callbacks"
ACCOUNT_PATH: Final = "/callbacks/"


class Unknown(NamedTuple):
    """What is said of a path that is none of ours."""

    detail: str
    """To whoever asked."""
    hint: str = ""
    """To the operator: what to do, where that is known."""


_OURS: Final = "callbacks go to /callbacks or /callbacks/{auth_id}"
_UNKNOWN: Final = Unknown(_OURS)
_DOUBLED_SLASH: Final = Unknown(
    f"{_OURS}, with one slash before",
    "leave the slash away that stands before /callbacks in the URL that Plivo is told, or in the proxy",
)

_PREFIXED: Final = re.compile(r"(/.*)/callbacks(?:/[^/]*)?", re.DOTALL)
_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_.~-]{1,32}){1,4}")
_DIGITS_MAX: Final = 4
"""A prefix is repeated if it is short and plain. With more digits it may hold a number or a secret."""


def account_in(path: str) -> str | None:
    """The account that a path names, empty for the common path; None where the path is none of ours."""
    read = _read(path)
    if read == PATH:
        return ""
    return read[len(ACCOUNT_PATH) :] if read.startswith(ACCOUNT_PATH) else None


def why_unknown(path: str) -> Unknown:
    """What to say of a path that `account_in` does not know."""
    prefixed = _PREFIXED.fullmatch(_read(path))
    if prefixed is None:
        return _UNKNOWN
    prefix = prefixed[1].rstrip("/")
    if not prefix:
        return _DOUBLED_SLASH
    if not _PLAIN.fullmatch(prefix) or sum(map(str.isdigit, prefix)) > _DIGITS_MAX:
        prefix = ""
    return Unknown(
        f"{_OURS}: the proxy must strip what stands before, {prefix or 'its prefix'}",
        f"have the proxy strip {prefix or 'the prefix'} from the path, and set MASKLINE_PUBLIC_URL to what Plivo dials "
        f"up to and without /callbacks, as https://hooks.example.com{prefix or '/prefix'}",
    )


def _read(path: str) -> str:
    return (unquote(path) if "%" in path else path).rstrip("/")
