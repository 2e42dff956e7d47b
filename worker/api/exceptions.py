"""The exceptions of an attempt: those that a handler raises to say how it ended, and those that its worker raises."""

from maskline.schemas.errors import MasklineError


class Retry(MasklineError):  # noqa: N818  read aloud in a handler: `raise Retry(after_ms=500)`
    """Ask for another try; it counts as one of the handler's `retries`.

    `after_ms`: how long to wait, at most the handler's `backoff_max_ms`; None leaves it to the backoff.
    """

    def __init__(self, reason: str = "", *, after_ms: int | None = None) -> None:
        super().__init__(reason or "the handler asked for another try")
        if after_ms is not None and not after_ms >= 0:  # NaN is not, either
            raise ValueError("after_ms must not be negative")
        self.after_ms = after_ms


class Reject(MasklineError):  # noqa: N818  as above
    """Send the event to the dead letters at once, for this handler: no further try can help."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class HandlerTimeoutError(MasklineError):
    """An attempt took longer than the handler's `timeout_ms`."""


class HandlerHungError(MasklineError):
    """An attempt did not end within its `timeout_ms` and cannot be stopped: it may still have effects."""


class HandlerCrashedError(MasklineError):
    """The worker went down each time this handler ran for this event, so the handler does not run again.

    `crashes`: how often that was seen. `sandbox_exit`: how the sandbox ended, if there was one.
    """

    def __init__(self, crashes: int, sandbox_exit: str = "") -> None:
        sandbox = f", and so did a process of its own ({sandbox_exit})" if sandbox_exit else ""
        # Once more than was seen: nothing was marked the first time.
        times = crashes + 1 if sandbox_exit else crashes
        super().__init__(f"its worker went down {times} times while this handler ran{sandbox}")
