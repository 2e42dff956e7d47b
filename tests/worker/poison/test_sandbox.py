"""What a run in the sandbox comes to, by real processes."""

import textwrap
from pathlib import Path

import pytest
from dispatch_kit import START_MS, partition_of_test
from msgspec.structs import replace

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.events import SessionTimeout
from maskline.schemas.parameters import FORM_TYPE
from maskline.schemas.settings import Settings
from maskline.worker.api.binding import bind
from maskline.worker.api.context import Context
from maskline.worker.api.exceptions import HandlerCrashedError, HandlerTimeoutError
from maskline.worker.api.failure_verdict import FailedInSandboxError
from maskline.worker.api.loading import load_handlers
from maskline.worker.counters import Counters
from maskline.worker.poison.sandbox import IMPOSSIBLE_MAX, KILLED_MAX, Sandbox, SandboxUnavailableError

HANDLERS = """
    import asyncio, os, signal
    from pathlib import Path
    from maskline import Reject, on

    RUNS = Path(__file__).with_name("runs")

    @on.every(name="handler", timeout_ms=TIMEOUT_MS)
    async def handle(event, ctx):
        with RUNS.open("a") as file:
            file.write(f"{ctx.attempt} {ctx.fencing_token} {ctx.idempotency_key}\\n")
        ACTION
"""


class Suspect:
    """An event, its handler, and a sandbox that can load the handler."""

    def __init__(self, folder: Path, action: str, timeout_ms: int = 30_000) -> None:
        self.path = folder / "suspect_handlers.py"
        self.runs = folder / "runs"
        source = textwrap.dedent(HANDLERS).replace("ACTION", action).replace("TIMEOUT_MS", str(timeout_ms))
        self.path.write_text(source)
        (self.handler,) = bind(load_handlers([str(self.path)]), {})[SessionTimeout]
        self.counters = Counters()
        self.sandbox = Sandbox(Settings(handlers=(str(self.path),)), {self.handler.name}, self.counters)
        body = b"EventName=SessionTimeout&SessionUUID=s&SequenceNumber=1"
        value = encode_callback(RawCallback("POST", b"", FORM_TYPE, body, START_MS, "MA1"))
        partition = partition_of_test()
        decoded = partition.decode(
            [(f"{START_MS}-0".encode(), [CALLBACK_FIELD, value])], pending=False, now_ms=START_MS
        )
        (session,) = partition.arrive(decoded, {}, START_MS)
        self.release = session.queue[0]
        self.ctx = Context(self.release, self.handler.name, 4, 7)

    async def run(self) -> None:
        await self.sandbox.run(self.handler, self.release, self.ctx, 2)

    def run_lines(self) -> list[str]:
        return self.runs.read_text().splitlines()


@pytest.fixture
def suspect(tmp_path):
    return lambda action, **options: Suspect(tmp_path, action, **options)


async def test_handler_that_handles_the_event_is_cleared_and_sees_the_worker_s_context(suspect):
    it = suspect("pass")
    await it.run()
    assert it.run_lines() == [f"4 7 {it.ctx.idempotency_key}"]
    assert it.counters.sandbox_runs == {"handled": 1}
    assert it.sandbox.available("handler")
    assert not it.sandbox.available("another"), "no other process could load it"


async def test_handler_that_fails_brings_what_its_failure_means_and_its_traceback_along(suspect):
    it = suspect("raise Reject('no such fare 17')")
    with pytest.raises(FailedInSandboxError) as caught:
        await it.run()
    assert caught.value.report == ("rejected", "rejected: no such fare 17", None)
    assert caught.value.origin == ("Reject", "suspect_handlers.py:handle", "no such fare 17")
    assert "suspect_handlers.py" in caught.value.traceback
    assert it.counters.sandbox_runs == {"failed": 1}


async def test_handler_sees_in_its_context_what_it_would_in_the_worker(suspect):
    it = suspect("RUNS.with_name('seen').write_text(repr((ctx.skipped, ctx.replayed, ctx.attempt)))")
    arrival = it.release.arrival
    arrival = replace(arrival, payload=replace(arrival.payload, replayed=True))
    it.release = replace(it.release, arrival=arrival)
    it.ctx = Context(it.release, it.handler.name, 4, 7, skipped=(2, 5))
    await it.run()
    assert it.runs.with_name("seen").read_text() == "((2, 5), True, 4)"


@pytest.mark.parametrize(
    ("action", "how"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV")]
)
async def test_handler_whose_sandbox_dies_is_confirmed_to_crash_at_once(suspect, action, how):
    it = suspect(action)
    with pytest.raises(HandlerCrashedError, match=how):
        await it.run()
    assert len(it.run_lines()) == 1
    assert it.counters.sandbox_runs == {"crashed": 1}


async def test_sigkill_confirms_a_crash_only_when_it_ends_every_run(suspect):
    it = suspect("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(HandlerCrashedError, match="SIGKILL"):
        await it.run()
    assert len(it.run_lines()) == KILLED_MAX
    assert it.counters.sandbox_runs == {"crashed": 1}


async def test_one_sigkill_from_outside_confirms_nothing(suspect):
    it = suspect("len(RUNS.read_text().splitlines()) > 1 or os.kill(os.getpid(), signal.SIGKILL)")
    await it.run()
    assert len(it.run_lines()) == 2
    assert it.counters.sandbox_runs == {"handled": 1}


async def test_handler_over_its_time_limit_has_failed_and_its_process_is_ended(suspect):
    it = suspect("await asyncio.sleep(600)", timeout_ms=50)
    with pytest.raises(HandlerTimeoutError):
        await it.run()
    assert it.counters.sandbox_runs == {"failed": 1}


async def test_sandbox_that_cannot_load_the_handler_is_unavailable_after_a_few_runs(suspect):
    it = suspect("pass")
    it.path.write_text("raise RuntimeError('gone')")
    for run in range(IMPOSSIBLE_MAX):
        assert it.sandbox.available("handler"), run
        with pytest.raises(SandboxUnavailableError, match="gone"):
            await it.run()
    assert not it.sandbox.available("handler")
    assert it.counters.sandbox_runs == {"impossible": IMPOSSIBLE_MAX}
