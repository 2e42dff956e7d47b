"""What follows from how a handler ends, whatever way that is."""

import asyncio
from time import monotonic

import pytest
from dispatch_kit import (
    AT_ONCE,
    RECEIVED_MS,
    START_MS,
    dispatching,
    every,
)

from maskline import Reject, Retry

# Failures


async def test_retries_exhausted_become_a_dead_letter_with_everything_to_find_the_fault():
    attempts = []

    @every(retries=2, **AT_ONCE, name="settle")
    async def handle(event, ctx):
        attempts.append(ctx.attempt)
        raise LookupError("no fare for +44 7700 900123")

    async with dispatching(handle) as d:
        d.feed(("s", 1), From="%2B447700900123")
        await d.until_handled()
        (letter,) = d.letters()
    assert attempts == [1, 2, 3]
    assert (letter.code, letter.handler, letter.attempts) == ("retries_exhausted", "settle", 3)
    assert (letter.session_uuid, letter.sequence_number) == ("s", 1)
    assert (letter.event_name, letter.group) == ("SessionFirstPartyRinging", "workers")
    assert (letter.received_at_ms, letter.entry_id) == (RECEIVED_MS, f"{START_MS}-1")
    assert letter.reason.startswith("retries exhausted after 3 attempts: LookupError: no fare for num_")
    assert letter.traceback is not None
    assert "test_failed_attempts.py" in letter.traceback
    assert "900123" not in letter.reason + letter.traceback + repr(letter)
    assert b"From=%2B447700900123" in letter.callback
    assert d.counters.failed == {"settle": 3}
    assert d.counters.dead == {"retries_exhausted": 1}


async def test_a_retry_that_succeeds_leaves_nothing_behind():
    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        if ctx.attempt == 1:
            raise ValueError

    async with dispatching(handle) as d:
        (session,) = d.feed(("s", 1), ("s", 2))
        await d.until_handled()
        assert d.letters() == []
        assert session.progress is None
        assert session.idle


async def test_retry_after_takes_its_time_and_counts_as_one():
    starts = []

    @every(retries=1, backoff_ms=60_000)
    async def handle(event, ctx):
        starts.append(monotonic())
        raise Retry("later", after_ms=40)

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await d.until_handled()
        (letter,) = d.letters()
    assert starts[1] - starts[0] >= 0.039
    assert letter.attempts == 2


async def test_reject_makes_a_dead_letter_at_once():
    @every()
    async def handle(event, ctx):
        raise Reject("no such fare")

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await d.until_handled()
        (letter,) = d.letters()
    assert (letter.code, letter.attempts, letter.reason) == ("rejected", 1, "rejected: no such fare")


class OddError(BaseException):
    """As the exceptions of test frameworks are: no Exception."""


class WithoutTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "failure",
    [
        SystemExit(1),
        OddError("odd"),
        asyncio.CancelledError("by the handler itself"),
        WithoutTextError(),
        ValueError("a file called \udcff"),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        StopIteration(3),
        RecursionError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "thread"])
async def test_whatever_a_handler_raises_is_a_failed_attempt(failure, plain):
    if plain:

        @every(retries=1, **AT_ONCE)
        def handle(event, ctx):
            raise failure

    else:

        @every(retries=1, **AT_ONCE)
        async def handle(event, ctx):
            raise failure

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("t", 1))
        await d.until_handled()
        letters = d.letters()
    assert [letter.attempts for letter in letters] == [2, 2]
    assert {letter.code for letter in letters} == {"retries_exhausted"}


async def test_a_task_cancelled_under_the_handler_is_a_failed_attempt():
    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        shared = asyncio.create_task(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(shared.cancel)
        await shared

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("s", 2))
        await d.until_handled()
        assert [letter.attempts for letter in d.letters()] == [2, 2]


@pytest.mark.parametrize("caught", [True, False])
async def test_a_handler_that_cancels_its_own_task_stops_nobody_else(caught):
    seen = []

    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not caught:
                raise
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle, concurrency=2) as d:
        d.feed(*((f"s{session}", number) for session in range(5) for number in (1, 2)))
        await d.until_handled()
        letters = d.letters()
    assert len(seen) == (10 if caught else 0)
    assert len(letters) == (0 if caught else 10)


# Several handlers on one event


async def test_several_handlers_succeed_and_fail_each_by_itself():
    ran = []

    def make(name, failures, **options):
        @every(name=name, **AT_ONCE, **options)
        async def handle(event, ctx):
            ran.append((name, ctx.attempt))
            if ctx.attempt <= failures:
                raise ValueError(name)

        handle.__name__ = name
        return handle

    handlers = make("a", 0), make("b", 2, retries=3), make("c", 9, retries=1), make("d", 0)
    async with dispatching(*handlers) as d:
        d.feed(("s", 1), ("s", 2))
        await d.until_handled()
        letters = d.letters()
    one_event = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("b", 2), ("c", 2), ("b", 3)]
    assert ran == one_event * 2
    assert [(letter.handler, letter.attempts, letter.sequence_number) for letter in letters] == [
        ("c", 2, 1),
        ("c", 2, 2),
    ]


async def test_the_next_event_waits_until_every_handler_is_done_with_the_last():
    ran, ready = [], asyncio.Event()

    @every(name="first")
    async def first(event, ctx):
        ran.append(("first", event.sequence_number))

    @every(name="second", retries=1, backoff_ms=1, backoff_max_ms=1)
    async def second(event, ctx):
        if ctx.attempt == 1:
            raise ValueError
        ready.set()
        await asyncio.sleep(0)
        ran.append(("second", event.sequence_number))

    async with dispatching(first, second) as d:
        d.feed(("s", 1), ("s", 2))
        await ready.wait()
        assert ran == [("first", 1)]
        await d.until_handled()
    assert ran == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]


async def test_a_dead_letter_is_there_when_another_handler_is_set_aside():
    @every(name="hopeless")
    async def hopeless(event, ctx):
        raise Reject("never")

    @every(name="patient", retries=1)
    async def patient(event, ctx):
        raise Retry(after_ms=60_000)

    async with dispatching(hopeless, patient) as d:
        d.feed(("s", 1))
        await d.progress.wait()
        assert [letter.handler for letter in d.letters()] == ["hopeless"]
        assert d.counters.set_aside == {"patient": 1}
        assert d.partition.unfinished == 0


async def test_event_without_a_handler_is_done():
    @every()
    async def handle(event, ctx):
        raise AssertionError

    async with dispatching(handle) as d:
        d.feed(("s", 1), name="SessionFirstPartyAnswer")
        await d.until_handled()
        assert d.letters() == []
