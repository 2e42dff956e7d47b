"""How an attempt may fail, what a handler raises to say so itself, and what follows from it. Pure."""

from typing import NamedTuple, TypeVar

from maskline.schemas.errors import MasklineError
from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.retry import RetryPolicy
from maskline.worker.error_text import error_message, short_traceback

_Failure = TypeVar("_Failure", bound=BaseException)


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
    """An attempt did not end within its `timeout_ms` and cannot be stopped: it may still do its work."""


class HandlerCrashedError(MasklineError):
    """The worker went down each time this handler ran for this event, so the handler does not run again.

    `crashes`: how often that was seen. `how`: how the sandbox ended, if there was one.
    """

    def __init__(self, crashes: int, how: str = "") -> None:
        sandbox = f", and so did a process of its own ({how})" if how else ""
        # Once more than was seen: nothing was marked the first time.
        times = crashes + 1 if how else crashes
        super().__init__(f"its worker went down {times} times while this handler ran{sandbox}")


class Verdict(NamedTuple):
    """What follows a failed attempt."""

    delay_ms: float | None
    """When to try again; None sends the event to the dead letters for this handler."""
    code: str
    reason: str
    """One line, without phone numbers."""


class FailedInSandboxError(MasklineError):
    """The handler failed in a sandbox, where the verdict was given as well.

    `verdict`: what follows. `traceback`: where the handler failed, as text.
    """

    def __init__(self, verdict: Verdict, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback
        self.verdict = verdict


def traceback_of(failure: BaseException | None) -> str | None:
    """The traceback that a dead letter keeps of a failed attempt; None where no attempt was made."""
    if failure is None:
        return None
    return failure.traceback if isinstance(failure, FailedInSandboxError) else short_traceback(failure)


def overtime(handler: BoundHandler, *, in_thread: bool) -> MasklineError:
    """The failure of an attempt that its time limit has ended. `in_thread`: it runs on in a thread."""
    limit = f"no end after {handler.timeout_s * 1000:.0f} ms"
    if in_thread:
        return HandlerHungError(f"{limit}, in a thread, which cannot be stopped")
    return HandlerTimeoutError(limit)


def unstoppable(handler: BoundHandler) -> MasklineError:
    """The failure of an attempt that its time limit has cancelled, and that has not ended all the same."""
    return HandlerHungError(f"no end after {handler.timeout_s * 1000:.0f} ms, nor after it was cancelled")


def judge(failure: BaseException, policy: RetryPolicy, attempt: int, *, jitter: float) -> Verdict:
    """Decide what follows attempt number `attempt` (1, 2, …) that failed with `failure`; `jitter` is 0 … 1.

    Retry and Reject count in an exception group as well, which is how they leave a TaskGroup.
    """
    if isinstance(failure, FailedInSandboxError):
        return failure.verdict
    if isinstance(failure, HandlerCrashedError):
        return Verdict(None, "crashed_worker", str(failure))
    if (rejected := _within(failure, Reject)) is not None:
        return Verdict(None, "rejected", f"rejected: {error_message(rejected)}")
    if isinstance(failure, HandlerHungError):
        # A second try could do the work twice.
        return Verdict(None, "timed_out", f"timed out: {error_message(failure)}")
    timed_out = isinstance(failure, HandlerTimeoutError)
    cause = ": ".join(
        filter(None, ("timed out" if timed_out else type(failure).__name__, error_message(failure)))
    )
    asked = _within(failure, Retry)
    delay_ms = policy.delay_ms(attempt, after_ms=asked.after_ms if asked else None, jitter=jitter)
    if delay_ms is not None:
        return Verdict(delay_ms, "failed", cause)
    code = "timed_out" if timed_out else "retries_exhausted"
    return Verdict(
        None, code, f"retries exhausted after {attempt} attempt{'s' if attempt > 1 else ''}: {cause}"
    )


def _within(failure: BaseException, kind: type[_Failure]) -> _Failure | None:
    if isinstance(failure, kind):
        return failure
    if isinstance(failure, BaseExceptionGroup):
        for member in failure.exceptions:
            if (found := _within(member, kind)) is not None:
                return found
    return None
