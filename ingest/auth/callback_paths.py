"""Finds the account of a callback's path, and explains paths that are nearly right. Pure.

| path, percent-decoded, without slashes at its end | account |
| --- | --- |
| `/callbacks` | any that is configured |
| `/callbacks/{auth_id}` | that one |
| `…/callbacks`, `…/callbacks/{auth_id}` | none: a proxy did not strip its prefix, and the answer says so |

The path is decoded only to find out whose callback it is. A signature covers the path as it was dialled.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

PATH: Final = "/callbacks"
ACCOUNT_PATH: Final = "/callbacks/"


class UnknownPath(NamedTuple):
    """The explanation of a path that takes no callbacks."""

    detail: str
    """For the sender."""
    hint: str = ""
    """For the operator: what to do, where that is known."""


_OUR_PATHS: Final = "callbacks go to /callbacks or /callbacks/{auth_id}"
_UNKNOWN: Final = UnknownPath(_OUR_PATHS)
_DOUBLED_SLASH: Final = UnknownPath(
    f"{_OUR_PATHS}, with one slash before",
    "leave the slash away that stands before /callbacks in the URL that Plivo is told, or in the proxy",
)

_PREFIXED: Final = re.compile(r"(/.*)/callbacks(?:/[^/]*)?", re.DOTALL)
_PLAIN_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_.~-]{1,32}){1,4}")
_PREFIX_DIGITS_MAX: Final = 4
"""A prefix is repeated if it is short and plain. One with more digits may hold a phone number or a secret."""


def account_of_path(path: str) -> str | None:
    """The auth_id that a path names, empty for the common path; None where the path is none of ours."""
    decoded = _decode(path)
    if decoded == PATH:
        return ""
    return decoded[len(ACCOUNT_PATH) :] if decoded.startswith(ACCOUNT_PATH) else None


def explain_unknown_path(path: str) -> UnknownPath:
    """Explain a path for which `account_of_path` is None."""
    prefixed = _PREFIXED.fullmatch(_decode(path))
    if prefixed is None:
        return _UNKNOWN
    prefix = prefixed[1].rstrip("/")
    if not prefix:
        return _DOUBLED_SLASH
    if not _PLAIN_PREFIX.fullmatch(prefix) or sum(map(str.isdigit, prefix)) > _PREFIX_DIGITS_MAX:
        prefix = ""
    return UnknownPath(
        f"{_OUR_PATHS}: the proxy must strip what stands before, {prefix or 'its prefix'}",
        f"have the proxy strip {prefix or 'the prefix'} from the path, and set MASKLINE_PUBLIC_URL to what Plivo dials "
        f"up to and without /callbacks, as https://hooks.example.com{prefix or '/prefix'}",
    )


def without_prefix(path: str) -> str | None:
    """The path of ours at the end of a path that has something before it, as a proxy should have forwarded it.

    None where there is none. The path is taken as it came, not decoded.
    """
    prefixed = _PREFIXED.fullmatch(path.rstrip("/"))
    return None if prefixed is None else path[len(prefixed[1]) :]


def _decode(path: str) -> str:
    return (unquote(path) if "%" in path else path).rstrip("/")
