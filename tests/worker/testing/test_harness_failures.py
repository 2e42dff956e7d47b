"""What follows a failure, in the harness's time: DESIGN's "When a handler fails", and what operators do about it."""

import asyncio
from types import ModuleType

import pytest

from maskline import Reject, on
from maskline.events import SessionFirstPartyRinging
from maskline.testing import SESSION_UUID, Harness, callback
from maskline.worker.gates.breaker import FAILURES_MAX, SESSIONS_MIN


def module_of(*functions):
    made = ModuleType("users_handlers")
    for function in functions:
        setattr(made, function.__name__, function)
    return made


def ringing(number, **attributes):
    return callback("SessionFirstPartyRinging", sequence_number=number, **attributes)


def seen(harness, handler=None):
    """Number and attempt of each call, those that succeeded with a `+`."""
    return [
        f"{call.event.sequence_number}.{call.attempt}{'' if call.error else '+'}"
        for call in harness.calls
        if handler in (None, call.handler)
    ]


class Fares:
    """What a handler calls: fails while it is down, or for certain numbers."""

    def __init__(self, *bad, **options):
        self.down = False
        self.bad = set(bad)

        @on(SessionFirstPartyRinging, name="fares", **options)
        async def fares(event, ctx):
            if self.down or event.sequence_number in self.bad:
                raise ConnectionError("fares are down")

        self.module = module_of(fares)


async def test_retries_wait_for_the_harness_s_time():
    fares = Fares(1, backoff_ms=1_000)
    async with Harness(fares.module, retry_waits=True) as harness:
        await harness.feed(ringing(1), ringing(2))
        assert (seen(harness), harness.set_aside) == (["1.1"], 2)
        await harness.pass_time(0.999)
        assert seen(harness) == ["1.1"]
        await harness.pass_time(0.001)
        await harness.pass_time(2)
        fares.bad.clear()
        await harness.pass_time(4)
        assert seen(harness) == ["1.1", "1.2", "1.3", "1.4+", "2.1+"]
        assert (harness.set_aside, harness.dead_letters) == (0, [])


async def test_an_event_is_given_up_after_its_time_and_a_last_try():
    async with Harness(Fares(1, give_up_after_s=100, backoff_ms=60_000).module, retry_waits=True) as harness:
        await harness.feed(ringing(1))
        await harness.pass_time(99.9)
        assert (seen(harness), harness.dead_letters) == (["1.1", "1.2"], [])
        await harness.pass_time(0.1)
        (letter,) = harness.dead_letters
        assert seen(harness) == ["1.1", "1.2", "1.3"]
        assert (letter.code, letter.attempts, letter.parked) == ("retries_exhausted", 3, True)


@pytest.mark.parametrize("retry_waits", [False, True])
async def test_a_dead_letter_that_is_replayed_runs_first_and_the_rest_follows(retry_waits):
    fares = Fares(1, retries=0)
    async with Harness(fares.module, retry_waits=retry_waits) as harness:
        await harness.feed(ringing(1), ringing(2), ringing(3))
        assert (seen(harness), harness.parked) == (["1.1"], 2)
        fares.bad.clear()
        await harness.replay(*harness.dead_letters)
        assert seen(harness) == ["1.1", "1.1+", "2.1+", "3.1+"]
        assert [call.replayed for call in harness.calls] == [False, True, False, False]
        assert len({call.idempotency_key for call in harness.calls[:2]}) == 1
        assert (harness.parked, harness.dead_letters) == (0, [])


async def test_a_dead_letter_that_is_discarded_is_skipped_and_may_be_named_by_its_view():
    fares = Fares(1, retries=0)

    @on.dead(name="alert")
    async def alert(letter, ctx):
        pass

    fares.module.alert = alert
    async with Harness(fares.module) as harness:
        await harness.feed(ringing(1), ringing(2))
        (told,) = harness.dead_calls
        await harness.discard(told.letter)
        assert [(call.event.sequence_number, call.skipped) for call in harness.calls] == [(1, ()), (2, (1,))]
        for again in (harness.discard, harness.replay):
            with pytest.raises(ValueError, match="no such dead letter"):
                await again(told.letter)


async def test_a_letter_of_no_handler_goes_into_the_stream_again():
    async with Harness(Fares().module) as harness:
        await harness.feed({"EventName": "SessionTimeout"})
        await harness.replay(*harness.dead_letters)
        assert [letter.code for letter in harness.dead_letters] == ["no_session_uuid"]


async def test_what_waits_behind_a_dead_letter_is_given_up_in_the_end():
    async with Harness(Fares(1, retries=0).module, dead_ttl_s=3_600) as harness:
        await harness.feed(ringing(1), ringing(2))
        await harness.pass_time(3_599)
        assert harness.parked == 1
        await harness.pass_time(1)
        await harness.feed(ringing(3))
        assert [letter.code for letter in harness.dead_letters] == ["retries_exhausted", "waited_too_long"]
        assert [call.skipped for call in harness.calls] == [(), (1, 2)]


async def test_a_handler_whose_calls_fail_is_down_spends_no_attempts_and_recovers():
    fares = Fares(retries=3)
    sessions = [f"s{number}" for number in range(max(FAILURES_MAX, SESSIONS_MIN))]
    async with Harness(fares.module, retry_waits=True) as harness:
        fares.down = True
        for session in sessions:
            await harness.feed(ringing(1, session_uuid=session))
        assert harness.state("fares") == "down"
        tried = len(harness.calls)
        await harness.feed(ringing(1, session_uuid="later"))
        assert len(harness.calls) == tried
        await harness.pass_time(3_600)
        probes = len(harness.calls) - tried
        assert 3_600 / 60 <= probes < 3_600 / 60 + 12
        assert harness.dead_letters == []
        fares.down = False
        await harness.pass_time(240)
        assert harness.state("fares") == "up"
        handled = [call.event.session_uuid for call in harness.calls if call.error is None]
        assert sorted(handled) == sorted([*sessions, "later"])
        assert (harness.set_aside, harness.dead_letters) == (0, [])


@pytest.mark.parametrize("retry_waits", [False, True])
async def test_a_paused_handler_waits_and_others_go_on(retry_waits):
    fares = Fares()

    @on(SessionFirstPartyRinging, name="other")
    async def other(event, ctx):
        pass

    fares.module.other = other
    async with Harness(fares.module, retry_waits=retry_waits) as harness:
        await harness.pause("fares", why="migration")
        await harness.feed(ringing(1), ringing(2))
        await harness.pass_time(600)
        assert (seen(harness, "fares"), seen(harness, "other")) == ([], ["1.1+", "2.1+"])
        assert (harness.state("fares"), harness.state("other")) == ("paused", "up")
        await harness.resume("fares")
        assert seen(harness, "fares") == ["1.1+", "2.1+"]
        assert harness.state("fares") == "up"
        with pytest.raises(ValueError, match="no handler is called fare; there are: fares, other"):
            await harness.pause("fare")


async def test_limits_hold_in_the_harness_s_time():
    running = most = 0

    @on(SessionFirstPartyRinging, name="limited", concurrency=2, rate=10)
    async def limited(event, ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with Harness(module_of(limited), retry_waits=True) as harness:
        await harness.feed(*(ringing(1, session_uuid=f"s{number}") for number in range(20)))
        assert (len(harness.calls), harness.set_aside) == (1, 19)
        await harness.pass_time(1)
        assert 9 <= len(harness.calls) <= 12
        await harness.pass_time(1)
        assert (len(harness.calls), most) == (20, 1)
    async with Harness(module_of(limited)) as harness:
        await harness.feed(*(ringing(1, session_uuid=f"s{number}") for number in range(20)))
        assert len(harness.calls) == 20


async def test_a_crash_before_the_commit_repeats_what_was_handled():
    async with Harness(Fares().module) as harness:
        await harness.feed(ringing(1))
        await harness.feed(ringing(2), ringing(4), crash=True)
        assert seen(harness) == ["1.1+", "2.1+", "2.1+"]
        assert harness.calls[1].idempotency_key == harness.calls[2].idempotency_key
        assert [call.fencing_token for call in harness.calls] == [1, 1, 2]
        await harness.feed(ringing(3), ringing(1))
        assert seen(harness)[3:] == ["3.1+", "4.1+"]
        assert harness.duplicates == 1


async def test_a_restart_keeps_counts_pauses_and_what_is_down():
    fares = Fares(1, backoff_ms=1_000)
    async with Harness(fares.module, retry_waits=True) as harness:
        await harness.feed(ringing(1), ringing(2))
        await harness.pause("fares")
        await harness.restart()
        assert (seen(harness), harness.set_aside, harness.state("fares")) == (["1.1"], 2, "paused")
        await harness.pass_time(10)
        fares.bad.clear()
        await harness.resume("fares")
        assert seen(harness) == ["1.1", "1.2+", "2.1+"]
        fares.down = True
        for number in range(FAILURES_MAX):
            await harness.feed(ringing(1, session_uuid=f"s{number}"))
        await harness.restart()
        assert harness.state("fares") == "down"


async def test_a_handler_that_runs_at_a_crash_runs_again_and_the_feed_waits_for_that():
    begun, calls = asyncio.Event(), []

    @on(SessionFirstPartyRinging)
    async def slow(event, ctx):
        calls.append(ctx.fencing_token)
        begun.set()
        if ctx.fencing_token == 1:
            await asyncio.Event().wait()

    async with Harness(module_of(slow)) as harness:
        feeding = asyncio.ensure_future(harness.feed(ringing(1)))
        await begun.wait()
        await harness.restart()
        await feeding
        assert calls == [1, 2]
        assert [type(call.error) for call in harness.calls] == [asyncio.CancelledError, type(None)]


async def test_a_letter_is_replayed_while_its_session_waits_for_a_number():
    @on(SessionFirstPartyRinging, name="picky", on_give_up="skip")
    async def picky(event, ctx):
        if event.sequence_number == 1 and not ctx.replayed:
            raise Reject("no")

    async with Harness(module_of(picky)) as harness:
        await harness.feed(ringing(1))
        await harness.feed(ringing(3))
        (letter,) = harness.dead_letters
        assert letter.session_uuid == SESSION_UUID
        await harness.replay(letter)
        assert [(call.event.sequence_number, call.order) for call in harness.calls] == [
            (1, "in_order"),
            (1, "in_order"),
        ]
        assert harness.waiting == 1


async def test_handled_callbacks_run_again_in_order_and_flagged():
    fares = Fares(3, retries=0)
    async with Harness(fares.module) as harness:
        await harness.feed(ringing(2), ringing(1), ringing(3), ringing(1, session_uuid="other"))
        keys = [call.idempotency_key for call in harness.calls[:2]]
        await harness.discard(*harness.dead_letters)
        harness.calls.clear()
        fares.bad.clear()
        await harness.run_again()
        assert [(call.event.sequence_number, call.order) for call in harness.calls] == [
            (1, "in_order"),
            (2, "in_order"),
            (3, "in_order"),
        ]
        assert {call.event.session_uuid for call in harness.calls} == {SESSION_UUID}
        assert all(call.replayed for call in harness.calls)
        assert [call.idempotency_key for call in harness.calls[:2]] == keys
        await harness.run_again(event_name="SessionPartiesHangup")
        assert len(harness.calls) == 3
        await harness.feed(ringing(9))
        with pytest.raises(ValueError, match="let the time of the gap pass first"):
            await harness.run_again()


def test_a_harness_must_be_entered():
    with pytest.raises(RuntimeError, match="enter the harness first"):
        _ = Harness(Fares().module).waiting


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), 1_767_225_600_000])
async def test_time_passes_only_forward_and_no_further_than_dates_go(seconds):
    async with Harness(Fares().module) as harness:
        before = harness.now_ms
        with pytest.raises(ValueError, match="pass_time takes 0 to 3,162,240,000 seconds"):
            await harness.pass_time(seconds)
        assert harness.now_ms == before
