"""Decodes callbacks by templates learned from earlier ones, with the same result as `schemas.decode`, the reference.

Plivo writes the callbacks of one event the same way each time: the same parameters in the same order, a *layout*. Once
a layout was seen a few times, a *template* is made for it: a reader of that layout alone, in C
(`schemas.fastdecode.native`). A callback that has no template, or a value that its template cannot read, is decoded by
the reference. So a template may refuse any form, but reads none otherwise than the reference
(`tests/schemas/fastdecode/test_templates.py`). Where maskline was installed without a compiler there are no templates,
and the reference decodes everything.

| bound | on |
| --- | --- |
| NAMES_MAX, NAMES_MAX_CHARS (`schemas.fastdecode.forms`) | parameters of a layout |
| TEMPLATES_MAX | templates; one more, and all are learned anew |
| COUNTED_LAYOUTS_MAX | layouts whose callbacks are counted |
| CACHED_VALUES_MAX, CACHED_VALUE_CHARS_MAX (`schemas.fastdecode.plan`) | numbers, amounts and times kept as read |
"""

from collections import Counter
from typing import Final

from maskline.schemas.callback import (
    CALLBACK_VERSION,
    EMITTED_METHOD,
    RawCallback,
    decode_callback,
    encode_callback,
)
from maskline.schemas.decode import NONE_IGNORED, decode_event
from maskline.schemas.emission import emitted_summary, fingerprint_of_emitted
from maskline.schemas.fastdecode.forms import layout_of, split_form
from maskline.schemas.fastdecode.plan import (
    EVENT_NAME,
    SESSION_UUID,
    DecodedValue,
    FormLayout,
    form_of,
    plan_of,
)
from maskline.schemas.parameters import FORM_TYPE

try:
    from maskline.schemas.fastdecode.native import Templates
except ImportError:  # installed without a compiler
    HAS_TEMPLATES = False
else:
    HAS_TEMPLATES = True

TEMPLATES_MAX: Final = 1_024
COUNTED_LAYOUTS_MAX: Final = 1_024

LEARN_AFTER: Final = 4
"""A layout is learned when it was seen so often, and, should its template have been dropped, at twice, four times, … as
often: making a template costs as much as decoding some twenty callbacks."""

EVENT_NAME_CHARS_MAX: Final = 128
"""Of a layout's: it is kept with it."""

_BODY: Final = b"?"
_USUAL_HEAD: Final = encode_callback(RawCallback("POST", b"", FORM_TYPE, _BODY, 0, "")).partition(
    b"\xc4\x01" + _BODY
)[0]
"""What stands before the body in the stream value of a posted form, as Plivo's callbacks usually are."""


class TemplateDecoder:
    """Decodes stream values; `ignored` parameters are no part of a fingerprint.

    `group`: the consumer group, whose own summaries of calls are told from others'; None takes all for its own.
    """

    def __init__(self, ignored: frozenset[str] = NONE_IGNORED, group: str | None = None) -> None:
        self._group = group
        self.templates = Templates(_USUAL_HEAD, CALLBACK_VERSION) if HAS_TEMPLATES else None
        """The templates learned so far; None where there are none to be had."""
        self._ignored = ignored
        self._read = self.templates.read if self.templates is not None else _read_nothing
        self._seen: dict[FormLayout, int] = {}
        self.unreadable: Counter[str] = Counter()
        """How many values could not be read, by Plivo's name of the attribute. The code that reports them clears
        them."""

    def decode(self, value: bytes) -> DecodedValue:
        """Decode `value`, the msgpack of a RawCallback, as `decode_callback` and `decode_event` do.

        Raises UndecodableEntryError, and nothing else.
        """
        try:
            return self._read(value) or self._decode_rarely(value)
        except ValueError:  # such as a 31st of February, of which the reference makes a problem
            return self._decode_by_reference(decode_callback(value))

    def _decode_rarely(self, value: bytes) -> DecodedValue:
        """Decode a callback that has no template yet, or did not come as a posted form."""
        callback = decode_callback(value)
        if callback.method == EMITTED_METHOD:
            summary = emitted_summary(callback, self._group)
            return summary, fingerprint_of_emitted(callback), callback.received_at_ms, callback.replayed
        form = form_of(callback) if self.templates is not None else None
        if self.templates is None or form is None:
            return self._decode_by_reference(callback)
        made = self.templates.read_form(form)
        if made is not None:
            return (*made, callback.received_at_ms, callback.replayed)
        decoded = self._decode_by_reference(callback)
        self._learn(form, self.templates)
        return decoded

    def _learn(self, form: bytes, templates: "Templates") -> None:
        """Count the layout of a form, and make a template for it when it was seen often enough."""
        parts = split_form(form)
        names = layout_of(form, parts)
        if names is None or EVENT_NAME not in names or SESSION_UUID not in names:
            return
        layout = FormLayout(parts[2 * names.index(EVENT_NAME) + 1], tuple(names))
        if len(layout.event_name) > EVENT_NAME_CHARS_MAX:
            return
        seen = self._seen.get(layout, 0) + 1
        if len(self._seen) >= COUNTED_LAYOUTS_MAX:
            self._seen.clear()
        self._seen[layout] = seen
        if seen < LEARN_AFTER or seen & (seen - 1):
            return
        if len(templates) >= TEMPLATES_MAX:
            templates.clear()
        templates.add(form, plan_of(layout, self._ignored))

    def _decode_by_reference(self, callback: RawCallback) -> DecodedValue:
        event, fingerprint = decode_event(callback, self._ignored)
        if event.problems:  # a template makes no such event, so all of them are counted here
            self.unreadable.update(event.problems)
        return event, fingerprint, callback.received_at_ms, callback.replayed


def _read_nothing(_value: bytes) -> None:
    """Stands for the templates' `read` where there are none."""
