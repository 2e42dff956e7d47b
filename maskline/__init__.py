"""Plivo Number Masking callbacks, none lost, each session's in order: what handler modules import.

The events stand in `maskline.events`, the harness for tests in `maskline.testing`. The names here are imported when
they are asked for: a process must import `maskline.runtime.startup.search_path` first, and a health probe needs none
of them.
"""

TYPE_CHECKING = False
"""What type checkers take for true. `typing` is not imported here: a `typing.py` of the user's might be found first."""

if TYPE_CHECKING:
    from maskline.worker.api import Context, Reject, Retry, on, resource

__all__ = ["Context", "Reject", "Retry", "on", "resource"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maskline.worker import api  # noqa: PLC0415 - see above

    globals().update({public: getattr(api, public) for public in __all__})
    found: object = globals()[name]
    return found
