"""What follows a failed attempt: another try after a delay, or the dead letters, and for which reason. Pure."""

from typing import NamedTuple, TypeVar

from maskline.schemas.errors import MasklineError
from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.exceptions import (
    HandlerCrashedError,
    HandlerHungError,
    HandlerTimeoutError,
    Reject,
    Retry,
)
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.error_text import error_message, short_traceback

_Failure = TypeVar("_Failure", bound=BaseException)


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
    """The failure of an attempt that its time limit has ended. `in_thread`: it still runs in a thread."""
    limit = f"no end after {handler.timeout_s * 1000:.0f} ms"
    if in_thread:
        return HandlerHungError(f"{limit}, in a thread, which cannot be stopped")
    return HandlerTimeoutError(limit)


def unstoppable(handler: BoundHandler) -> MasklineError:
    """The failure of an attempt that was cancelled at its time limit and has not ended."""
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
