"""Says after which events a masking session is to end, by the settings. Pure, but for a function of the user's own."""

import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from maskline import Context
from maskline.events import Event, SessionPartiesHangup, SessionPinAuthenticationStatus
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings

Decider = Callable[[Event, Context], bool | Awaitable[bool]]
"""A function of the user's: true if the session is to end."""


class ExpiryRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a session ends, at least one of three."""

    after_call: Literal["off", "answered", "any"] = "off"
    """After a call: one that was answered, or any."""
    pin_failures: int = 0
    """After so many wrong PINs; 0: never."""
    decider: Decider | None = None
    """After an event for which this returns true."""

    @property
    def types(self) -> tuple[type[Event], ...]:
        """The events that can end a session by these rules."""
        if self.decider is not None:
            return (Event,)
        return (
            *((SessionPartiesHangup,) if self.after_call != "off" else ()),
            *((SessionPinAuthenticationStatus,) if self.pin_failures else ()),
        )

    async def ends_session(self, event: Event, ctx: Context) -> bool:
        """Whether the session ends after this event. Raises what the user's function raises, and TypeError where it
        returns something other than True that is not false.
        """
        if isinstance(event, SessionPartiesHangup) and self._ends_after_call(event):
            return True
        if isinstance(event, SessionPinAuthenticationStatus) and self._ends_after_pin(event):
            return True
        if self.decider is None:
            return False
        decision: Any = self.decider(event, ctx)
        if inspect.isawaitable(decision):
            decision = await decision
        if (
            decision and decision is not True
        ):  # ("no", "too short") is true to Python, and would part two people
            raise TypeError(
                f"MASKLINE_EXPIRE_FUNCTION must return True or False, not {type(decision).__name__}"
            )
        return bool(decision)

    def _ends_after_call(self, event: SessionPartiesHangup) -> bool:
        # A call that nobody answered has no duration, or one of 0: people try again, so the session must live on.
        answered = (event.duration or 0) > 0 or (event.billed_duration or 0) > 0
        return self.after_call == "any" or (self.after_call == "answered" and answered)

    def _ends_after_pin(self, event: SessionPinAuthenticationStatus) -> bool:
        # `PinRetryCounter`: the wrong inputs so far. Without it, this one is all that is known.
        failed = (event.pin_authentication_status or "").lower() == "failed"
        wrong = event.pin_retry_counter or 1
        return failed and 0 < self.pin_failures <= wrong


def expiry_rules(settings: Settings) -> ExpiryRules:
    """The rules that the settings ask for.

    Raises ConfigError, one line, if they ask for none, or if the user's function cannot be found or called; and what
    the user's module raises at its import.
    """
    rules = ExpiryRules(
        after_call=settings.expire_after_call,
        pin_failures=settings.expire_pin_failures,
        decider=_decider(settings.expire_function) if settings.expire_function else None,
    )
    if not rules.types:
        raise ConfigError(
            "nothing says when sessions end: set MASKLINE_EXPIRE_AFTER_CALL, MASKLINE_EXPIRE_PIN_FAILURES "
            "or MASKLINE_EXPIRE_FUNCTION"
        )
    return rules


def _decider(name: str) -> Decider:
    """The function that MASKLINE_EXPIRE_FUNCTION names, as `module:function`."""
    where, _, function = name.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports is not
        raise ConfigError(f"MASKLINE_EXPIRE_FUNCTION: {name}: there is no module {error.name}") from None
    found: Any = getattr(module, function, None)
    if found is None:
        raise ConfigError(f"MASKLINE_EXPIRE_FUNCTION: {name}: the module has no {function}")
    if not callable(found) or inspect.isclass(found):
        raise ConfigError(f"MASKLINE_EXPIRE_FUNCTION: {name} is no function")
    yields = inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found)
    if yields or not _takes_two(found):
        raise ConfigError(
            f"MASKLINE_EXPIRE_FUNCTION: {name} must be as in: def {function}(event, ctx) -> bool"
        )
    decider: Decider = found
    return decider


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # one written in C does not say
        return True
    except TypeError:
        return False
    return True
