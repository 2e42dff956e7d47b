"""What follows a failed attempt: another try after a delay, or the dead letters, and for which reason. Pure.

`failure_report` says what an exception means; a sandbox, where the exception is, sends its report. `judge` decides by
the report, the handler's options, and how often and how long the event has failed. `cause_of_giving_up` is what a dead
letter says of it.
"""

from typing import Literal, NamedTuple, TypeVar

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
from maskline.worker.entries.dead_letter import Cause
from maskline.worker.error_text import NO_ORIGIN, Origin, error_message, origin_of, short_traceback

_Failure = TypeVar("_Failure", bound=BaseException)


class Verdict(NamedTuple):
    """What follows a failed attempt."""

    delay_ms: float | None
    """When to try again; None sends the event to the dead letters for this handler."""
    code: str
    reason: str
    """One line, without phone numbers."""


class FailureReport(NamedTuple):
    """What a failed attempt means."""

    kind: Literal["failed", "timed_out", "hung", "rejected", "crashed"]
    """`hung`: overtime, and it cannot be stopped. `rejected`: the handler raised Reject. `crashed`: its worker goes
    down each time."""
    text: str
    """One line for a person, without phone numbers."""
    after_ms: int | None = None
    """The wait that the handler requested by Retry."""


class FailedInSandboxError(MasklineError):
    """The handler failed in a sandbox, where its exception is.

    `report`: what it means. `traceback`: where the handler failed, as text. `origin`: by which its dead letter is
    grouped.
    """

    def __init__(self, report: FailureReport, traceback: str, origin: Origin) -> None:
        super().__init__(traceback)
        self.report = report
        self.traceback = traceback
        self.origin = origin


def overtime(handler: BoundHandler, *, in_thread: bool) -> MasklineError:
    """The failure of an attempt that its time limit has ended. `in_thread`: it still runs in a thread."""
    limit = f"no end after {handler.timeout_s * 1000:.0f} ms"
    if in_thread:
        return HandlerHungError(f"{limit}, in a thread, which cannot be stopped")
    return HandlerTimeoutError(limit)


def unstoppable(handler: BoundHandler) -> MasklineError:
    """The failure of an attempt that was cancelled at its time limit and has not ended."""
    return HandlerHungError(f"no end after {handler.timeout_s * 1000:.0f} ms, nor after it was cancelled")


def failure_report(failure: BaseException) -> FailureReport:
    """What the exception of an attempt means.

    Retry and Reject count in an exception group as well, which is how they leave a TaskGroup.
    """
    if isinstance(failure, FailedInSandboxError):
        return failure.report
    message = error_message(failure)
    if isinstance(failure, HandlerCrashedError):
        return FailureReport("crashed", message)
    if (rejected := _within(failure, Reject)) is not None:
        return FailureReport("rejected", f"rejected: {error_message(rejected)}")
    if isinstance(failure, (HandlerHungError, HandlerTimeoutError)):
        return FailureReport(
            "hung" if isinstance(failure, HandlerHungError) else "timed_out", f"timed out: {message}"
        )
    asked = _within(failure, Retry)
    text = f"{type(failure).__name__}: {message}".removesuffix(": ")
    return FailureReport("failed", text, None if asked is None else asked.after_ms)


def judge(
    report: FailureReport,
    policy: RetryPolicy,
    *,
    attempts: int,
    first_failed_ms: int | None,
    now_ms: int,
    jitter: float,
) -> Verdict:
    """Decide what follows a failed attempt.

    `attempts`: how many have failed, this one included. `first_failed_ms`, `now_ms`: when the first of them failed, and
    the present, in milliseconds of the same clock; None if this one is the first. `jitter`: a random number, 0 … 1.
    """
    match report.kind:
        case "crashed":
            return Verdict(None, "crashed_worker", report.text)
        case "rejected":
            return Verdict(None, "rejected", report.text)
        case "hung":  # a second try could do the work twice
            return Verdict(None, "timed_out", report.text)
        case _:
            pass
    # A clock that was set back takes nothing from the time that an event has.
    failing_for_ms = 0 if first_failed_ms is None else max(now_ms - first_failed_ms, 0)
    delay_ms = policy.delay_ms(
        attempts, failing_for_ms=failing_for_ms, after_ms=report.after_ms, jitter=jitter
    )
    if delay_ms is not None:
        return Verdict(delay_ms, "failed", report.text)
    code = "timed_out" if report.kind == "timed_out" else "retries_exhausted"
    return Verdict(None, code, f"{_limit_reached(policy, attempts, failing_for_ms)}: {report.text}")


def cause_of_giving_up(
    verdict: Verdict, failure: BaseException | None, *, handler: str | None, attempts: int
) -> Cause:
    """What a dead letter says of an event that a verdict gives up. `failure`: the last attempt's, None if none was
    made.
    """
    if failure is None:
        return Cause(verdict.code, verdict.reason, handler, attempts)
    if isinstance(failure, FailedInSandboxError):
        traceback, origin = failure.traceback, failure.origin
    else:
        if isinstance(failure, HandlerCrashedError):
            failure.with_traceback(None)  # maskline's own frames, of no use to anybody
        traceback, origin = short_traceback(failure), failure_origin(failure)
    return Cause(verdict.code, verdict.reason, handler, attempts, traceback, origin)


def failure_origin(failure: BaseException) -> Origin:
    """Where a handler failed. NO_ORIGIN if maskline ended the attempt: such failures of one handler belong together."""
    if isinstance(failure, (HandlerCrashedError, HandlerHungError, HandlerTimeoutError)):
        return NO_ORIGIN
    return origin_of(failure)


def _limit_reached(policy: RetryPolicy, attempts: int, failing_for_ms: int) -> str:
    """Which of the handler's limits an event has reached, for a person."""
    tried = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    if policy.retries is not None and attempts > policy.retries:
        return f"retries exhausted after {tried}"
    return f"given up after {_span_text(failing_for_ms)} and {tried}"


def _span_text(span_ms: float) -> str:
    """A span of time for a person, in the greatest unit of which it has two: `90 s`, `24 h`, `3 days`."""
    span_s = span_ms / 1000
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if span_s >= 2 * length_s:
            return f"{span_s / length_s:.0f} {unit}"
    return f"{span_s:.0f} s"


def _within(failure: BaseException, kind: type[_Failure]) -> _Failure | None:
    if isinstance(failure, kind):
        return failure
    if isinstance(failure, BaseExceptionGroup):
        for member in failure.exceptions:
            if (found := _within(member, kind)) is not None:
                return found
    return None
