"""Kinds of values that settings have: each checks and reads a text, and shows the value to the operator.

A kind names in one phrase what is allowed. `read` raises ValueError; its text, if there is any, adds what in particular
is wrong, and never repeats the value, which may be a secret.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from maskline.schemas.hosts import read_hosts

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
YEAR_S: Final = 31_536_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


class Kind(NamedTuple):
    """How one kind of value is explained, read and shown."""

    allowed: str
    """Ends the sentence "NAME must be …"."""
    read: Callable[[str], Any]
    native: type | None = None
    """The TOML type that is accepted besides text."""
    show: Callable[[Any], str] = _plain
    """From value to text. For everything but secrets, `read(show(value)) == value`."""
    secret: bool = False
    """Whether error lines never show a value; `show` then hides its secret parts."""


WHOLE: Final = re.compile(r"[0-9][0-9_]*\Z")
_SIZE: Final = re.compile(r"([0-9][0-9_]*) ?([kmgt]i?b|b)?\Z", re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1} | {
    f"{letter}{binary}b": base ** (power + 1)
    for binary, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("kmgt")
}
_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_AUTH_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_AUTH_TOKEN: Final = re.compile(r"[!-+\--~]{1,256}\Z")  # printable ASCII without the comma
REPLICAS_MAX: Final = 100
"""Nobody runs more: a larger number is a typing error, and WAIT for it would refuse every callback."""


def _in_range(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError
    return value


def _read_whole(text: str) -> int:
    text = text.strip()
    if not WHOLE.match(text):
        raise ValueError
    # 20 digits lie outside every range, and int() of megabytes is slow.
    return int(text.replace("_", "")[:20])


def whole(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""
    return Kind(
        f"a whole number from {low} to {high}", lambda text: _in_range(_read_whole(text), low, high), int
    )


def _read_size(text: str) -> int:
    match = _SIZE.match(text.strip())
    if not match:
        raise ValueError
    unit: int = _UNITS[(match[2] or "").lower()]
    return _read_whole(match[1]) * unit


def show_size(value: int) -> str:
    """A number of bytes as `1 GiB` if it is whole in MiB or a larger unit, else the plain number."""
    for letter, power in (("T", 4), ("G", 3), ("M", 2)):
        if value and value % 1024**power == 0:
            return f"{value // 1024**power} {letter}iB"
    return str(value)


def size(low: int, high: int) -> Kind:
    """A number of bytes from `low` to `high`, written with or without a unit."""
    return Kind(
        f"a size from {show_size(low)} to {show_size(high)} (bytes, or with a unit: 512MiB, 1 GiB)",
        lambda text: _in_range(_read_size(text), low, high),
        int,
        show_size,
    )


def choice(*words: str) -> Kind:
    """One of `words`, in any case."""

    def read(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError
        return word

    return Kind(" or ".join((", ".join(words[:-1]), words[-1])), read)


_TRUTHS: Final[dict[str, bool]] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _read_flag(text: str) -> bool:
    try:
        return _TRUTHS[text.strip().lower()]
    except KeyError:
        raise ValueError from None


FLAG: Final = Kind("true or false", _read_flag, bool, lambda value: "true" if value else "false")


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.match(text):
            raise ValueError
        return text

    return read


LABEL: Final = Kind("1 to 64 letters, digits, '_', '.' or '-'", _matching(_LABEL))
HOSTS: Final = Kind("addresses or host names, comma-separated", lambda text: ",".join(read_hosts(text)), list)


def _read_path(text: str) -> Path:
    if not text.isprintable():
        raise ValueError
    if "://" in text:
        raise ValueError("it is a URL")
    path = Path(text)
    try:
        return path.expanduser() if text.startswith("~") else path
    except RuntimeError:
        raise ValueError("nobody knows that home directory") from None


PATH: Final = Kind("a path", _read_path)


def _items(text: str) -> list[str]:
    """The items of a list: separated by commas, or one a line, as files of secrets are written."""
    return [item for part in re.split(r"[,\n]", text) if (item := part.strip())]


def comma_list(
    allowed: str, read: Callable[[str], Any], show: Callable[[Any], str] = str, **options: Any
) -> Kind:
    """A list whose items are of the kind that `read` and `show` make, without repeats. `options`: those of Kind."""

    def read_all(text: str) -> tuple[Any, ...]:
        items = _items(text)
        if text.strip() and not items:
            raise ValueError("it has commas and nothing between them")
        values: list[Any] = []
        for position, item in enumerate(items, 1):
            try:
                values.append(read(item))
            except ValueError as error:
                reason = f"{error}, " if str(error) else ""
                raise ValueError(f"{reason}entry {position} of {len(items)}") from None
        return tuple(dict.fromkeys(values))

    return Kind(allowed, read_all, list, lambda values: ",".join(map(show, values)), **options)


def _read_network(text: str) -> Network:
    text = re.sub(r"\A\[(.*)\]", r"\1", text)  # as IPv6 addresses are written in URLs
    if "%" in text:
        raise ValueError("leave the zone away")  # which a connection does not know of its peer
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        network = ipaddress.ip_network(text, strict=False)  # raises again unless only host bits are set
        raise ValueError(f"host bits are set, the network is {network}") from None


def _read_network_item(text: str) -> Network:
    try:
        return _read_network(text)
    except ValueError as error:
        # The library's own messages repeat the value without need.
        own_message = re.match("host bits are set, the|leave the zone", str(error))
        raise ValueError(str(error) if own_message else "") from None


NETWORKS: Final = comma_list("networks such as 10.0.0.0/8, comma-separated", _read_network_item)


def _read_token(text: str) -> tuple[str, str]:
    auth_id, colon, token = text.partition(":")
    if not colon:
        raise ValueError("no colon in it")
    if not _AUTH_ID.match(auth_id):
        raise ValueError("not an auth_id before the colon")
    if not _AUTH_TOKEN.match(token):
        raise ValueError("not a token after the colon")
    return auth_id, token


AUTH_TOKENS: Final = comma_list(
    "auth_id:token pairs, comma-separated", _read_token, lambda pair: f"{pair[0]}:***", secret=True
)


_ENTRY_POINT: Final = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*\Z")
"""What an installed package may call its handlers."""


def _read_handler(text: str) -> str:
    dotted = all(part.isidentifier() for part in text.split(".")) or _ENTRY_POINT.match(text)
    if not text.isprintable() or not (dotted or (text.endswith(".py") and "://" not in text)):
        raise ValueError
    return text


HANDLERS: Final = comma_list(
    "dotted modules, .py paths or names of installed packages' handlers, comma-separated", _read_handler
)


COUNTED_ALWAYS: Final = ("SessionUUID", "EventName", "SequenceNumber")
"""Parameters that cannot be ignored: without them different callbacks would pass for repeats of one."""
_PARAMETER_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,128}\Z")


def _read_parameter_name(text: str) -> str:
    if text in COUNTED_ALWAYS:
        raise ValueError(f"{text} always counts")
    if not _PARAMETER_NAME.match(text):
        raise ValueError
    return text


PARAMETER_NAMES: Final = comma_list("names of parameters, comma-separated", _read_parameter_name)


def _read_durability(text: str) -> str:
    text = text.strip().lower()
    word, colon, count = text.partition(":")
    if word == "replicas" and colon:
        return f"replicas:{_in_range(_read_whole(count), 1, REPLICAS_MAX)}"
    if text not in {"memory", "fsync"}:
        raise ValueError
    return text


DURABILITY: Final = Kind(f"memory, fsync or replicas:N (N from 1 to {REPLICAS_MAX})", _read_durability)


def _read_function(text: str) -> str:
    module, colon, function = text.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ValueError
    return text


FUNCTION: Final = Kind("the name of a function as module:function", _read_function)


class Description(NamedTuple):
    """Describes a setting beside its type: the kind of its values, its meaning and, if need be, its default in
    words.
    """

    kind: Kind
    meaning: str
    default_text: str | None = None
