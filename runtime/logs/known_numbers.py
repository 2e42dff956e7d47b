"""Knows the phone numbers of the events under way, and replaces them by tokens in everything that this process writes.

Handling an event costs one `append`, by `add_event`. Its numbers are read only if something is written. Numbers stay
known after their events, for what is written late (by a queue, or a task that a handler has left running): the last
NUMBERS_MAX of them, and always those of the attempts under way.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, Protocol
from weakref import WeakSet

from maskline.schemas.call_summary import CallSummary, Handled
from maskline.schemas.events import Event
from maskline.schemas.phone_numbers import PhoneNumbers
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, redact

EVENTS_MAX: Final = 1_024
"""Events whose numbers are not read yet. A process that writes nothing for so many of them has nothing to hide; the
next write reads the last ones, and those under way."""
NUMBERS_MAX: Final = 4_096
"""Each more makes it likelier that other digits are taken for it by chance (schemas.phone_numbers)."""
NUMBERS_SPARE: Final = 1_024
"""Numbers kept beyond that, before the oldest are removed: removing them one by one would cost more than keeping
them."""
LINE_MAX_CHARS: Final = 1 << 18
"""Of one line that is written: searching so many takes milliseconds as a rule, and half a second if they are nothing
but digits or escapes. The rest of the line is left out."""
DEPTH_MAX: Final = 6
ITEMS_MAX: Final = 1_000
"""Nesting and members of a logged value; parts beyond them are searched as the text that they become."""


class RunningEvents(Protocol):
    """Knows the events whose handlers may still be running."""

    def events(self) -> Iterable[Handled]:
        """Those events. Any thread may call this."""


class KnownNumbers:
    """Learns numbers from events and hides them in texts. May be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self._seen: deque[Handled] = deque(maxlen=EVENTS_MAX)
        self.add_event = self._seen.append
        """To be called with each event, before its first handler."""
        self._under_way: WeakSet[RunningEvents] = WeakSet()
        self._numbers = PhoneNumbers()
        self._added = dict[str, None]()
        """Numbers as events have them, since some were last forgotten: of a session's events, only the first costs more
        than a lookup."""
        self._lock = threading.RLock()

    def watch(self, under_way: RunningEvents) -> None:
        """Ask `under_way` for its events when numbers are learned, as long as it exists."""
        self._under_way.add(under_way)

    def after_fork(self) -> None:
        """Make a new lock in the child of a fork, as another thread may have held the old one."""
        self._lock = threading.RLock()

    def hide(self, text: str) -> str:
        """The text with tokens for the known numbers, however they are spelled; the same object where it has none."""
        if not self._seen and not self._numbers:
            return text
        if self._seen:
            with self._lock:
                self._learn_seen()
        if len(text) > LINE_MAX_CHARS:
            text = "\n".join(map(_cut, text.split("\n")))
        try:
            return self._numbers.redact(text)
        except Exception as error:  # noqa: BLE001 - a fault of ours must neither stop the writer, nor let a number through
            return f"(a text that could not be looked through for numbers: {type(error).__name__})\n"

    def redact(self, text: str) -> str:
        """The same, with tokens also for everything else that looks like a number."""
        return redact(self.hide(text))

    def hide_bytes(self, data: bytes) -> bytes:
        """The same for encoded text."""
        if not self._seen and not self._numbers:
            return data
        text = data.decode("utf-8", "surrogateescape")
        hidden = self.hide(text)
        return data if hidden is text else hidden.encode("utf-8", "surrogateescape")

    def hide_value(self, value: Any, depth: int = 0) -> Any:
        """The same for a logged value; it keeps its type if it has none of the numbers."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, (bytes, bytearray)):
            data = bytes(value)
            hidden = self.hide_bytes(data)
            return value if hidden is data else hidden
        if isinstance(value, (int, float, Decimal)):
            return self._hide_figure(value)
        return self._hide_members(value, depth + 1) if depth < DEPTH_MAX else value

    def _hide_figure(self, value: float | Decimal) -> Any:
        try:
            shown = str(value)
        except Exception:  # noqa: BLE001 - more digits than Python writes, or a type with a __str__ of its own
            return value
        hidden = self.hide(shown)
        return value if hidden is shown else hidden

    def _hide_members(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is dict and len(value) <= ITEMS_MAX:
            pairs = [(name, member) for name, member in value.items()]
            hidden = [
                (self.hide_value(name, depth), self.hide_value(member, depth)) for name, member in pairs
            ]
            same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, hidden, strict=True))
            return value if same else dict(hidden)
        if kind in (list, tuple, set, frozenset) and len(value) <= ITEMS_MAX:
            members = list(value)
            hidden_members = [self.hide_value(member, depth) for member in members]
            same = all(a is b for a, b in zip(members, hidden_members, strict=True))
            return value if same else kind(hidden_members)
        return value

    def _learn_seen(self) -> None:
        seen, numbers = self._seen, self._numbers
        if len(seen) == seen.maxlen:  # it may have dropped some of those under way
            self._learn_running()
        with contextlib.suppress(IndexError):  # empty
            while True:
                self._learn(seen.popleft())
        if len(numbers) > NUMBERS_MAX + NUMBERS_SPARE:
            numbers.keep_latest(NUMBERS_MAX)
            self._added.clear()
            self._learn_running()

    def _learn_running(self) -> None:
        for under_way in list(self._under_way):
            for event in under_way.events():
                self._learn(event)

    def _learn(self, event: Handled) -> None:
        added = self._added
        numbers: tuple[str | None, ...]
        if isinstance(event, CallSummary):
            numbers = (event.first_party_number, event.second_party_number)
        else:
            numbers = (event.from_number, event.to_number, event.first_party, event.second_party)
        for number in numbers:
            if number is not None and number not in added:
                added[number] = None
                self._numbers.add(number)
        if not isinstance(event, CallSummary) and event.problems:
            for number in repeated_numbers_of(event):
                self._numbers.add(number)


def repeated_numbers_of(event: Event) -> list[str]:
    """The real numbers of an event that came twice and differ, so that no attribute has them."""
    numbers: list[str] = []
    for name in NUMBER_ATTRIBUTES.intersection(event.extra):
        texts = event.extra[name]
        numbers += texts if isinstance(texts, list) else [texts]
    return numbers


def _cut(line: str) -> str:
    more = len(line) - LINE_MAX_CHARS
    return line if more <= 0 else f"{line[:LINE_MAX_CHARS]}… ({more} more characters)"


KNOWN_NUMBERS: Final = KnownNumbers()
"""The known numbers of this process."""

os.register_at_fork(after_in_child=KNOWN_NUMBERS.after_fork)
