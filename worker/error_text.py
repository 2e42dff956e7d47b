"""Describes an exception in few bytes for a person who is to mend its cause, without phone numbers.

A whole traceback is mostly the way from our loop to the handler, and down into libraries: thousands of characters that
are the same each time. Of each exception in the chain these are kept: its type and message, the last lines of the
user's own code, and the line that raised it.
"""

import linecache
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS

CHAIN_MAX: Final = 3
"""Exceptions shown of a chain (`raise … from …`) or of a group: the last one, and those that led to it."""

FRAMES_MAX: Final = 6
"""Lines of the user's own code shown of each exception, the innermost ones."""

LINE_MAX_CHARS: Final = 200
"""Of a line of code or a path; of a path its end is shown."""

MESSAGE_MAX_CHARS: Final = 1_000
"""Of an exception's text: some carry whole answers of a server."""

TRACEBACK_MESSAGE_MAX_CHARS: Final = 300
"""Of an exception's text in a traceback, where the lines must have room as well."""

OURS: Final = tuple(
    f"{Path(__file__).resolve().parent.parent / package}/" for package in ("worker", "runtime", "schemas")
)
_PATHS: Final = sysconfig.get_paths()
LIBRARIES: Final = tuple({f"{_PATHS[name]}/" for name in ("stdlib", "purelib", "platlib")})


class Origin(NamedTuple):
    """Where a failure came from, in words that stay the same when the lines around it move."""

    error_type: str | None
    """The exception's name, without its module."""
    frame: str | None
    """The user's own innermost frame, `<file's name>:<function>`; a library's if there is none."""
    message: str
    """The exception's text, as `error_message` gives it."""


NO_ORIGIN: Final = Origin(None, None, "")


def storable_text(text: str) -> str:
    """The text with what UTF-8 cannot hold escaped: lone surrogates, of a file name for instance."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_message(failure: BaseException, at_most: int = MESSAGE_MAX_CHARS) -> str:
    """The text of any exception, in one line of at most `at_most` characters, without phone numbers."""
    try:
        text = str(failure)
    except BaseException:  # noqa: BLE001  a handler's exception, with a __str__ of its own
        text = "(an exception whose text cannot be read)"
    # Numbers go before the end does: the first half of one would not be recognised.
    shown = " ".join(KNOWN_NUMBERS.redact(storable_text(text[: 2 * MESSAGE_MAX_CHARS])).split())
    return shown if len(shown) <= at_most else shown[: at_most - 1] + "…"


def short_traceback(failure: BaseException, *, maskline_lines: bool = False) -> str:
    """Where a failure came from: lines and messages, the innermost cause first, without phone numbers.

    `maskline_lines`: show lines of maskline itself where there are no others.
    """
    chain: list[BaseException] = []
    _collect(failure, chain)
    parts = [_one_short_traceback(one, maskline_lines=maskline_lines) for one in reversed(chain)]
    return KNOWN_NUMBERS.redact(storable_text("\n".join(parts)))


def origin_of(failure: BaseException, *, maskline_lines: bool = False) -> Origin:
    """Where a failure came from. Of an exception group, its first exception counts.

    `maskline_lines`: name a function of maskline itself where there is no other.
    """
    for _ in range(CHAIN_MAX):
        if not isinstance(failure, BaseExceptionGroup):
            break
        failure = failure.exceptions[0]
    shown = _own_frames(failure, maskline_lines=maskline_lines)
    code = shown[-1][0].f_code if shown else None
    frame = f"{Path(code.co_filename).name}:{code.co_name}" if code is not None else None
    return Origin(
        storable_text(type(failure).__qualname__)[:LINE_MAX_CHARS],
        None if frame is None else storable_text(frame)[-LINE_MAX_CHARS:],
        error_message(failure),
    )


def _collect(failure: BaseException, chain: list[BaseException]) -> None:
    """Add the failure and those that led to it, or are in its group, to `chain`: CHAIN_MAX at most."""
    todo: list[BaseException] = [failure]
    while todo and len(chain) < CHAIN_MAX:
        one = todo.pop(0)
        if any(one is known for known in chain):
            continue
        chain.append(one)
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions[:CHAIN_MAX]
        led_to = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if led_to is not None:
            todo.append(led_to)


def _one_short_traceback(failure: BaseException, *, maskline_lines: bool) -> str:
    described = f"{type(failure).__qualname__}: {error_message(failure, TRACEBACK_MESSAGE_MAX_CHARS)}"
    lines = [_line(frame, number) for frame, number in _frames(failure, maskline_lines=maskline_lines)]
    return "\n".join([*lines, described.removesuffix(": ")])


def _frames(failure: BaseException, *, maskline_lines: bool) -> list[tuple[FrameType, int]]:
    """The lines to show of one exception: the user's last ones, and the line that raised it."""
    shown = _own_frames(failure, maskline_lines=maskline_lines)
    frames = traceback.walk_tb(failure.__traceback__)
    users = [it for it in frames if not it[0].f_code.co_filename.startswith(OURS)]
    raised = [it for it in users[-1:] if shown and it != shown[-1]]
    return shown[-FRAMES_MAX:] + raised


def _own_frames(failure: BaseException, *, maskline_lines: bool) -> list[tuple[FrameType, int]]:
    """The frames of the user's own code; if there are none those of libraries, then those of maskline if asked for."""
    frames = list(traceback.walk_tb(failure.__traceback__))
    users = [it for it in frames if not it[0].f_code.co_filename.startswith(OURS)]
    own = [it for it in users if not it[0].f_code.co_filename.startswith(LIBRARIES)]
    return own or users or (frames if maskline_lines else [])


def _line(frame: FrameType, number: int) -> str:
    code = frame.f_code
    source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    place = f"{code.co_filename[-LINE_MAX_CHARS:]}:{number} in {code.co_name[:LINE_MAX_CHARS]}"
    return f"{place}\n    {source[:LINE_MAX_CHARS]}" if source else place
