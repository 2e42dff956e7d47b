"""How an attempt may end, what a handler may raise to say so itself, and what follows from it. Pure."""

from typing import NamedTuple

from schemas.errors import MasklineError
from worker.registry import BoundHandler
from worker.retry import RetryPolicy


class Retry(MasklineError):  # noqa: N818  read aloud in a handler: `raise Retry(after_ms=500)`
    """Ask for another try; it counts as one of the handler's `retries`.

    `after_ms`: how long to wait, at most the handler's `backoff_max_ms`; None leaves it to the backoff.
    """

    def __init__(self, reason: str = "", *, after_ms: int | None = None) -> None:
        super().__init__(reason or "the handler asked for another try")
        if after_ms is not None and after_ms < 0:
            raise ValueError("after_ms must not be negative")
        self.after_ms = after_ms


class Reject(MasklineError):  # noqa: N818  as above
    """Send the event to the dead letters at once, for this handler: no further try can help."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class HandlerTimeoutError(MasklineError):
    """An attempt took longer than the handler's `timeout_ms`."""


class ThreadHungError(MasklineError):
    """A plain handler did not end within its `timeout_ms`, and a thread cannot be stopped."""


class Verdict(NamedTuple):
    """What follows a failed attempt."""

    delay_ms: float | None
    """When to try again; None sends the event to the dead letters for this handler."""
    code: str
    reason: str


def overtime(handler: BoundHandler) -> MasklineError:
    """The failure of an attempt that was cut off by its time limit."""
    limit = f"no end after {handler.timeout_s * 1000:.0f} ms"
    return ThreadHungError(limit) if handler.in_thread else HandlerTimeoutError(limit)


def judge(failure: BaseException, policy: RetryPolicy, attempt: int, *, jitter: float) -> Verdict:
    """Decide what follows attempt number `attempt` (1, 2, …) that failed with `failure`; `jitter` is 0 … 1."""
    if isinstance(failure, Reject):
        return Verdict(None, "rejected", f"rejected: {failure}")
    if isinstance(failure, ThreadHungError):
        # The thread may yet do its work, so a second try could do it twice.
        return Verdict(None, "timed_out", f"timed out in a thread, which cannot be stopped: {failure}")
    timed_out = isinstance(failure, HandlerTimeoutError)
    cause = f"{'timed out' if timed_out else type(failure).__name__}: {failure}"
    delay_ms = policy.delay_ms(
        attempt, after_ms=failure.after_ms if isinstance(failure, Retry) else None, jitter=jitter
    )
    if delay_ms is not None:
        return Verdict(delay_ms, "failed", cause)
    code = "timed_out" if timed_out else "retries_exhausted"
    return Verdict(
        None, code, f"retries exhausted after {attempt} attempt{'s' if attempt > 1 else ''}: {cause}"
    )
