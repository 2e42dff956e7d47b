"""Makes what every attempt begins with: a copy of the context that the resources were opened in, decimal's included.

A copy of a context is one of its variables, not of what they hold. So what `decimal.getcontext()` gives, which handlers
change in place, must be another object for every attempt. Python makes one, with the settings of
`decimal.DefaultContext`, wherever there is none yet: so it is left out, unless its settings are others.
"""

import contextvars
import decimal
from typing import Final

_SETTINGS: Final = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")


class CleanContext:
    """`source`: the context that the resources were opened in, taken as it is now."""

    def __init__(self, source: contextvars.Context) -> None:
        used = source.copy().run(decimal.getcontext)  # a new one, where there is none
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
        """Whether a copy that still holds the same values is as good as new.

        Not so where a handler may have changed one of them in place, unseen.
        """
        return self._decimal is None

    def copy(self) -> contextvars.Context:
        """A context for an attempt."""
        context = self._variables.copy()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        return context
