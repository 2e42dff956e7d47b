"""The shapes that callbacks really have, learned: the fast way to what `schemas.decode` says they mean.

Plivo writes the callbacks of one event the same way each time: the same names in the same order. A shape is that: the
event and its names. Once a shape was seen a few times, a reader is made for it. Whatever is not of a known shape, or
has a value that cannot be read, goes the reference's way: a reader may refuse anything, but reads nothing otherwise
than the reference would (tests/schemas/fastdecode/test_templates.py, over both kinds of readers and the reference).

The readers are in C (`schemas.fastdecode.native`) where that could be built when maskline was installed, in Python
(`schemas.fastdecode.python_readers`) elsewhere.

| bound | on |
| --- | --- |
| NAMES_MAX, NAMES_MAX_CHARS (schemas.fastdecode.forms) | names of a shape |
| SHAPES_MAX | shapes that have a reader; when they are too many, all are learned anew |
| SEEN_MAX | shapes that are counted and have no reader yet |
| REMEMBERED, REMEMBERED_CHARS_MAX (schemas.fastdecode.plan) | numbers, amounts and times that were read a moment ago |
"""

from collections import Counter
from typing import Final, Protocol

from maskline.schemas.callback import CALLBACK_VERSION, RawCallback, decode_callback, encode_callback
from maskline.schemas.decode import NONE_IGNORED, decode_event
from maskline.schemas.fastdecode import python_readers
from maskline.schemas.fastdecode.forms import cut_form, layout_of
from maskline.schemas.fastdecode.plan import (
    EVENT_NAME,
    SESSION_UUID,
    Decoded,
    EventAndFingerprint,
    Plan,
    Template,
    form_of,
    plan_of,
)
from maskline.schemas.parameters import FORM_TYPE

SHAPES_MAX: Final = 1_024
SEEN_MAX: Final = 1_024

LEARN_AFTER: Final = 4
"""A shape is learned when it was seen so often, and, should it have been dropped, at twice, four times, … as often:
making a reader costs as much as some twenty callbacks."""

EVENT_NAME_CHARS_MAX: Final = 128
"""Of a shape's: it is kept with it."""


class Readers(Protocol):
    """Readers by their shapes. Both ways of reading raise ValueError for what only the reference can read."""

    def __len__(self) -> int: ...

    def read(self, encoded: bytes) -> Decoded | None:
        """Read a callback as it lies in the stream; None where it has no known shape, or did not come as usual."""

    def read_form(self, form: bytes) -> EventAndFingerprint | None:
        """Read a form; None where it has no known shape."""

    def add(self, form: bytes, shape: Template, plan: Plan) -> None:
        """Make a reader for forms like this one, if it can read them."""

    def clear(self) -> None: ...


def new_readers() -> Readers:
    try:
        from maskline.schemas.fastdecode import native  # noqa: PLC0415 - where there was no compiler, we are told so here
    except ImportError:
        return python_readers.Readers()
    return native.Readers(_USUAL_HEAD, CALLBACK_VERSION)


_BODY: Final = b"?"
_USUAL_HEAD: Final = encode_callback(RawCallback("POST", b"", FORM_TYPE, _BODY, 0, "")).partition(
    b"\xc4\x01" + _BODY
)[0]
"""Before the body of a callback that came as Plivo's usually do: a form, posted."""


class Templates:
    """The shapes that this process has met. `ignored` parameters are no part of a fingerprint."""

    def __init__(self, ignored: frozenset[str] = NONE_IGNORED) -> None:
        self.readers = new_readers()
        self._ignored = ignored
        self._read = self.readers.read
        self._seen: dict[Template, int] = {}
        self.unreadable: Counter[str] = Counter()
        """How often an attribute could not be read, by Plivo's name of it. Whoever counts takes them away."""

    def decode(self, encoded: bytes) -> Decoded:
        """A callback as it lies in the stream, as `decode_callback` and `schemas.decode.decode_event` read it.

        Raises UndecodableEntryError, and nothing else.
        """
        try:
            return self._read(encoded) or self._decode_rarely(encoded)
        except ValueError:  # a 31st of February: the reference knows what to do about it
            return self._refer(decode_callback(encoded))

    def _decode_rarely(self, encoded: bytes) -> Decoded:
        callback = decode_callback(encoded)
        form = form_of(callback)
        if form is None:
            return self._refer(callback)
        made = self.readers.read_form(form)
        if made is not None:
            return (*made, callback.received_at_ms, callback.replayed)
        decoded = self._refer(callback)
        self._learn(form)
        return decoded

    def _learn(self, form: bytes) -> None:
        parts = cut_form(form)
        names = layout_of(form, parts)
        if names is None or EVENT_NAME not in names or SESSION_UUID not in names:
            return
        shape = Template(parts[2 * names.index(EVENT_NAME) + 1], tuple(names))
        if len(shape.event_name) > EVENT_NAME_CHARS_MAX:
            return
        seen = self._seen.get(shape, 0) + 1
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[shape] = seen
        if seen < LEARN_AFTER or seen & (seen - 1):
            return
        if len(self.readers) >= SHAPES_MAX:
            self.readers.clear()
        self.readers.add(form, shape, plan_of(shape, self._ignored))

    def _refer(self, callback: RawCallback) -> Decoded:
        event, fingerprint = decode_event(callback, self._ignored)
        if event.problems:  # which no reader makes an event of
            self.unreadable.update(event.problems)
        return event, fingerprint, callback.received_at_ms, callback.replayed
