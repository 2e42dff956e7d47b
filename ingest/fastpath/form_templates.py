"""Reads forms by the order of their names: the text that a V3 signature covers, and the session. Pure.

Sorting the names of one form reorders every other form with the same names in the same way, so the order is remembered
as a template (`schemas.fastdecode.forms`), and a form is not parsed pair by pair. A template is learned only from a
form that bore a valid signature: nobody else can fill the memory, or have it emptied.

A form out of the ordinary is not read here (None); `schemas.parameters` and `ingest.auth.signatures` read it. The
results here equal theirs (tests/ingest/fastpath/test_form_templates.py). Measured on Plivo-like forms of 270 bytes: 3.2
µs instead of 9.0 for parameters and text.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from maskline.ingest.auth.verifier import SESSION_UUID
from maskline.schemas.fastdecode.forms import layout_of, separators, separators_between, split_form
from maskline.schemas.values import is_null

FORM_TEMPLATES_MAX: Final = 1_024
"""Two dozen events, each with some attributes left out. Beyond it, all are forgotten and learned anew: by the bounds of
`schemas.fastdecode.forms` they take some 4 MB at most."""


class SignedForm(NamedTuple):
    """The parts of a form that the fast path needs."""

    signed_text: str
    """Names and values in the order in which they are signed."""
    session_uuid: str


class _FormTemplate(NamedTuple):
    separators: bytes
    in_signed_order: Callable[[Sequence[str]], tuple[str, ...]]
    """Names and values of a form, reordered by the names."""
    session_index: int
    """Where the session's value is among names and values."""


class FormTemplates:
    """The form templates of one process, by the names of the form."""

    __slots__ = ("_templates",)

    def __init__(self) -> None:
        self._templates: dict[str, _FormTemplate] = {}

    def __len__(self) -> int:
        return len(self._templates)

    def read(self, body: bytes) -> SignedForm | None:
        """Read a form that a template fits; None for any other, and for one without a session."""
        parts = split_form(body)
        template = self._templates.get("&".join(parts[::2]))
        if template is None or separators(body) != template.separators:
            return None
        session_uuid = parts[template.session_index]
        if is_null(session_uuid):
            return None
        return SignedForm("".join(template.in_signed_order(parts)), session_uuid)

    def learn(self, body: bytes) -> None:
        """Remember the template of a form whose signature was good, unless the form is out of the ordinary."""
        names = layout_of(body, split_form(body))
        if names is None or SESSION_UUID not in names:
            return
        if len(self._templates) >= FORM_TEMPLATES_MAX:
            self._templates.clear()
        order = sorted(range(len(names)), key=names.__getitem__)
        in_signed_order: Any = itemgetter(*(index for place in order for index in (2 * place, 2 * place + 1)))
        self._templates["&".join(names)] = _FormTemplate(
            separators_between(names), in_signed_order, 2 * names.index(SESSION_UUID) + 1
        )
