"""Which session runs when, and what handlers get: the dispatcher itself, with real handlers."""

import asyncio
import random
from collections import defaultdict
from datetime import UTC, datetime

import pytest
from dispatch_kit import (
    AT_ONCE,
    RECEIVED_MS,
    START_MS,
    dispatching,
    every,
)

from maskline.worker.dispatch import dispatcher

# Order and concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 256])
async def test_a_session_in_order_and_one_event_at_a_time(concurrency):
    seen, running, overlaps = defaultdict(list), set(), []
    rng = random.Random(concurrency)

    @every()
    async def handle(event, ctx):
        overlaps.append(event.session_uuid in running)
        running.add(event.session_uuid)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        running.discard(event.session_uuid)
        seen[event.session_uuid].append(event.sequence_number)

    events = [(f"s{session}", number) for session in range(20) for number in range(1, 9)]
    rng.shuffle(events)
    async with dispatching(handle, concurrency=concurrency) as d:
        for at in range(0, len(events), 16):
            d.feed(*events[at : at + 16])
            await asyncio.sleep(0)
        await d.until_handled()
        assert d.dispatcher.busy == d.partition.running == 0
    assert seen == {f"s{session}": list(range(1, 9)) for session in range(20)}
    assert not any(overlaps)


@pytest.mark.parametrize(("sessions", "concurrency"), [(10, 4), (3, 8), (40, 40)])
async def test_sessions_at_once_up_to_the_bound_and_no_further(sessions, concurrency):
    running, most, done = 0, 0, asyncio.Event()
    expected = min(sessions, concurrency)

    @every()
    async def handle(event, ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == expected:
            done.set()
        await done.wait()
        running -= 1

    async with dispatching(handle, concurrency=concurrency) as d:
        d.feed(*((f"s{index}", 1) for index in range(sessions)))
        await d.until_handled()
    assert most == expected


async def test_handlers_that_never_wait_leave_the_loop_its_turns():
    handled = 0

    @every()
    async def handle(event, ctx):
        nonlocal handled
        handled += 1

    async with dispatching(handle) as d:
        d.feed(*(("one long session", number) for number in range(1, 401)))
        d.feed(*((f"s{index}", 1) for index in range(400)))
        before, longest = 0, 0
        while d.partition.unfinished:
            await asyncio.sleep(0)
            longest, before = max(longest, handled - before), handled
    assert handled == 800
    assert longest <= 2 * dispatcher.EVENTS_PER_TURN_MAX * dispatcher.WAKE_MAX


async def test_handlers_that_fail_at_once_leave_the_loop_its_turns():
    failed = 0

    @every(retries=1, backoff_ms=60_000)
    async def handle(event, ctx):
        nonlocal failed
        failed += 1
        raise ValueError

    async with dispatching(handle) as d:
        d.feed(*((f"s{index}", 1) for index in range(600)))
        before, longest = 0, 0
        while failed < 600:
            await asyncio.sleep(0)
            longest, before = max(longest, failed - before), failed
    assert longest <= 2 * dispatcher.EVENTS_PER_TURN_MAX * dispatcher.WAKE_MAX


async def test_a_failing_session_holds_up_only_itself():
    seen = []

    @every(retries=3, backoff_ms=60_000)
    async def handle(event, ctx):
        if event.session_uuid == "bad":
            raise ValueError("no")
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("bad", 1), ("bad", 2), ("good", 1), ("fine", 1), ("good", 2))
        await d.until_handled(left=2)
        assert sorted(seen) == [("fine", 1), ("good", 1), ("good", 2)]
        assert d.dispatcher.busy == 0, "a runner waits for a backoff"


# Late events and the context


@pytest.mark.parametrize("late_dead", [False, True])
async def test_late_events_are_delivered_or_dead_letters_as_set(late_dead):
    seen = []

    @every()
    async def handle(event, ctx):
        seen.append((event.sequence_number, ctx.order))

    async with dispatching(handle, late_dead=late_dead) as d:
        d.feed(("s", 1), ("s", 2))
        d.feed(("s", 1), Amount="0.5")
        await d.until_handled()
        letters = d.letters()
    in_order = [(1, "in_order"), (2, "in_order")]
    if late_dead:
        assert seen == in_order
        (letter,) = letters
        assert (letter.code, letter.handler, letter.attempts, letter.traceback) == ("late", None, 0, None)
    else:
        assert seen == [*in_order, (1, "late")]
        assert letters == []


async def test_context_has_every_attribute_of_the_contract():
    contexts = []

    @every(retries=1, **AT_ONCE, name="handler")
    async def handle(event, ctx):
        contexts.append(ctx)
        assert ctx.log is ctx.log
        if ctx.attempt == 1:
            raise ValueError

    async with dispatching(handle) as d:
        d.feed(("s", 1), ("s", 4))
        gap_over = d.partition.decode((), pending=False, now_ms=0)
        d.dispatcher.submit(d.partition.arrive(gap_over, {}, START_MS + 6_000))
        await d.until_handled()
    first, again, fourth, _ = contexts
    assert (first.session_uuid, first.sequence_number, first.order) == ("s", 1, "in_order")
    assert (first.missing, first.run, first.replayed, first.fencing_token) == ((), 0, False, 7)
    assert first.entry_id == f"{START_MS}-1"
    assert first.received_at == datetime.fromtimestamp(RECEIVED_MS / 1000, UTC)
    assert (first.attempt, again.attempt) == (1, 2)
    assert (fourth.sequence_number, fourth.order, fourth.missing) == (4, "after_gap", (2, 3))
    assert first.idempotency_key == again.idempotency_key != fourth.idempotency_key
    assert first.log is not again.log


async def test_the_idempotency_key_is_that_of_the_callback_wherever_it_comes_from():
    keys = []

    @every()
    async def handle(event, ctx):
        keys.append((ctx.idempotency_key, ctx.fencing_token))

    for token in (7, 8):  # the second owner gets what the first one did not commit
        async with dispatching(handle) as d:
            d.partition.token = token
            d.feed(("s", 1), From="a", To="b")
            d.feed(("s", 2), To="b", From="a")
            d.feed(("s", 3), From="a", To="c")
            await d.until_handled()
    first, second = keys[:3], keys[3:]
    assert [key for key, _ in first] == [key for key, _ in second]
    assert len({key for key, _ in keys}) == 3
    assert {token for _, token in first} | {token for _, token in second} == {7, 8}
