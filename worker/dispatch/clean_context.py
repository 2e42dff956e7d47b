"""Copies the context that the resources were opened in, decimal's included: every attempt begins with such a copy.

Copying a context copies its variables, not the objects in them. Handlers change the object of `decimal.getcontext()` in
place, so every attempt needs one of its own. A context without one gets it from Python, with the settings of
`decimal.DefaultContext`. So a copy leaves it out, unless its settings are others.
"""

import contextvars
import decimal
from typing import Final

_SETTINGS: Final = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")


class CleanContext:
    """`source`: the context that the resources were opened in, taken as it is now."""

    def __init__(self, source: contextvars.Context) -> None:
        used = source.copy().run(decimal.getcontext)  # a new one if there is none
        self._variables = contextvars.Context()
        for variable, value in source.items():
            if value is not used:
                self._variables.run(variable.set, value)
        self._decimal: decimal.Context | None = None
        if any(getattr(used, name) != getattr(decimal.DefaultContext, name) for name in _SETTINGS):
            self._decimal = used.copy()
            self._decimal.clear_flags()

    @property
    def reusable(self) -> bool:
        """Whether an attempt may use a copy again that still holds the same values.

        False if a handler may have changed one of them in place, unseen.
        """
        return self._decimal is None

    def copy(self) -> contextvars.Context:
        """A context for an attempt."""
        context = self._variables.copy()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        return context
