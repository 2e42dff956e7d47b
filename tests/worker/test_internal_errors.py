"""Faults that nobody foresaw, on single entries and events: a dead letter at most, and everything else goes on."""

import asyncio
import itertools
from datetime import UTC, datetime

import pytest
from dispatch_kit import START_MS, dispatching, every
from msgspec import structs
from partition_kit import GAP_MS, entry, fields, finish_all, make, take_in
from process_kit import PATIENCE_S, Fleet
from servers import wait_until
from structlog.testing import capture_logs

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.fastdecode.templates import TemplateDecoder
from maskline.schemas.keys import partition_of
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.dispatch import internal_errors
from maskline.worker.entries.dead_letter import decode_dead_letter
from maskline.worker.ordering.reorder import SessionOrder
from maskline.worker.partitions import partition
from maskline.worker.partitions.session import LiveSession

ODD = [
    RecursionError("too deep"),
    MemoryError(),
    OverflowError("int too large to convert"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
    KeyError("whatever"),
]


def letters(it):
    return [decode_dead_letter(one) for one in it._dead]


def raising_for(real, error, chosen):
    def call(*arguments, **named):
        if chosen(*arguments):
            raise error
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.usefixtures("both_ways")
def test_undecodable_entry_harms_no_other_of_its_batch(error, monkeypatch):
    odd = fields(SequenceNumber="2", From="+14155550123", Odd="yes")
    decode = raising_for(TemplateDecoder.decode, error, lambda _, value: b"Odd=yes" in value)
    monkeypatch.setattr(TemplateDecoder, "decode", decode)
    it = make()
    batch = [
        entry(1, SequenceNumber="1"),
        (b"5-0", odd),
        entry(9, SequenceNumber="3"),
        entry(8, SessionUUID="t"),
    ]
    ready = take_in(it, batch)
    assert {session.uuid for session in ready} == {"s", "t"}
    (letter,) = letters(it)
    assert (letter.code, letter.entry_id, letter.callback) == ("internal_error", "5-0", odd[1])
    assert type(error).__name__ in letter.reason
    assert [doing for doing, _ in it.internal_errors] == ["decoding"]
    assert it.open_entries == 3


@pytest.mark.parametrize(
    "odd",
    [
        None,
        (),
        [b"c"],
        [b"c", None],
        [None, b"x"],
        [1, 2],
        [b"c", b"x", b"y"],
        [b"c", "text"],
        [CALLBACK_FIELD, [b"x"]],
    ],
    ids=str,
)
@pytest.mark.usefixtures("both_ways")
def test_entry_with_any_content_becomes_a_dead_letter(odd):
    it = make()
    ready = take_in(it, [entry(1, SequenceNumber="1"), (b"5-0", odd), entry(9, SequenceNumber="2")])
    assert [len(session.queue) for session in ready] == [2]
    assert [letter.entry_id for letter in letters(it)] == ["5-0"]


STEPS = ["arrive", "_release", "_decide_waiting", "_is_duplicate", "_give_up"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("turn", range(1, 7))
def test_fault_in_ordering_loses_no_entry(step, turn, monkeypatch):
    """It strikes in the turn-th call of a step: every entry is released, or a duplicate, or a letter, and is done."""
    monkeypatch.setattr(partition, "arrive_ordinary", None)  # it has steps of its own
    turns = itertools.count(1)
    real = getattr(SessionOrder, step)
    failing = raising_for(real, RecursionError("odd"), lambda *_: next(turns) == turn)
    monkeypatch.setattr(SessionOrder, step, failing)
    it = make()
    numbers = [1, 3, 4, 2, 2, 7, 5]
    batch = [entry(at, SequenceNumber=str(number)) for at, number in enumerate(numbers)]
    batch += [entry(20 + at, SessionUUID="t", SequenceNumber=str(number)) for at, number in enumerate([1, 2])]
    released = []
    for one in batch:
        take_in(it, [one])
        released += finish_all(it)
    take_in(it, [entry(10 * GAP_MS, SessionUUID="u", SequenceNumber="1")], watermark=10 * GAP_MS)
    released += finish_all(it)
    assert it.open_entries == it.held == it.unfinished == 0
    lost = [letter.entry_id for letter in letters(it)]
    done = [release.arrival.payload.entry_id for release in released]
    assert len(set(done)) == len(done)
    assert not set(lost) & set(done)
    assert len(done) + len(lost) + it._counters.duplicates == len(batch) + 1
    assert all(letter.code == "internal_error" for letter in letters(it))


@pytest.mark.usefixtures("both_ways")
def test_entry_that_c_fails_on_is_decided_in_python_and_not_lost():
    it = make()
    decoded = it.decode(
        [entry(at, SequenceNumber=str(number)) for at, number in enumerate([1, 3, 4, 2, 5])],
        pending=False, now_ms=0,
    )  # fmt: skip
    for at in (1, 3):
        decoded.arrivals[at] = structs.replace(decoded.arrivals[at], fingerprint=b"odd%d" % at)
    it.arrive(decoded, {}, 0)
    it.arrive(it.decode([], pending=False, now_ms=0), {}, 10**15)
    assert [release.arrival.number for release in finish_all(it)] == [1, 2, 3, 4, 5]
    assert it.open_entries == it.held == 0


@pytest.mark.usefixtures("both_ways")
def test_session_whose_gap_cannot_be_given_up_delays_no_other(monkeypatch):
    monkeypatch.setattr(
        LiveSession, "expire",
        raising_for(SessionOrder.expire, ValueError("odd"), lambda session, *_: session.uuid == "odd"), raising=False,
    )  # fmt: skip
    it = make()
    take_in(it, [entry(1, SessionUUID=name, SequenceNumber="2") for name in ("odd", "even")])
    ready = take_in(it, [], watermark=5 * GAP_MS)
    assert [session.uuid for session in ready] == ["even"]
    assert [letter.session_uuid for letter in letters(it)] == ["odd"]
    assert it.held == 0


# In the dispatcher


@pytest.mark.parametrize("error", [*ODD, GeneratorExit()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("times", [1, 2, 100])
async def test_fault_of_the_dispatcher_strands_no_session(error, times, monkeypatch):
    monkeypatch.setattr(internal_errors, "RETRY_DELAY_MS", 1.0)
    left = itertools.count()
    calls = []

    @every(name="h")
    async def handle(event, ctx):
        calls.append((ctx.session_uuid, ctx.sequence_number))

    async with dispatching(handle, concurrency=4) as d:
        real = d.dispatcher._run_event

        async def faulty(session, release, attempt):
            if (session.uuid, release.arrival.number) == ("odd", 2) and next(left) < times:
                raise error
            return await real(session, release, attempt)

        monkeypatch.setattr(d.dispatcher, "_run_event", faulty)
        with capture_logs() as logs:
            d.feed(*(("odd", number) for number in range(1, 4)), *((f"s{n}", 1) for n in range(9)))
            await d.until_handled()
        assert d.partition.running == 0
        assert d.dispatcher.busy == 0
        given_up = times >= internal_errors.ERRORS_MAX
        assert [number for name, number in calls if name == "odd"] == ([1, 3] if given_up else [1, 2, 3])
        found = d.letters()
        assert [(letter.code, letter.sequence_number) for letter in found] == (
            [("internal_error", 2)] if given_up else []
        )
        if given_up:
            assert type(error).__name__ in found[0].reason
        assert d.background.failures["dispatcher"] == min(times, internal_errors.ERRORS_MAX)
        assert any(log["event"] == "background task failed" for log in logs)
        assert not d.dispatcher._internal_errors.by_entry


async def test_fault_after_an_event_is_done_does_not_run_it_again(monkeypatch):
    monkeypatch.setattr(internal_errors, "RETRY_DELAY_MS", 1.0)
    calls = []

    @every(name="h")
    async def handle(event, ctx):
        calls.append(ctx.sequence_number)

    async with dispatching(handle) as d:
        progressed = d.dispatcher._on_progress
        failing = raising_for(progressed, OSError("odd"), lambda *_: len(calls) == 1)
        monkeypatch.setattr(d.dispatcher, "_on_progress", failing)
        d.feed(("s", 1), ("s", 2), ("s", 3))
        async with asyncio.timeout(60):
            while d.partition.unfinished:
                await asyncio.sleep(0.001)
        assert calls == [1, 2, 3]
        assert d.partition.running == 0


async def test_sweep_of_time_limits_survives_a_fault(monkeypatch):
    """One attempt that cannot be given up, and the others are held to their limits all the same."""
    monkeypatch.setattr("maskline.worker.dispatch.time_limits.CANCEL_GRACE_S", 0.05)
    ended = []

    @every(name="h", retries=0, timeout_ms=30)
    async def handle(event, ctx):
        try:
            await asyncio.sleep(60)
        finally:
            if ctx.session_uuid == "stubborn":
                await asyncio.sleep(1)
            ended.append(ctx.session_uuid)

    async with dispatching(handle) as d:
        stuck = d.dispatcher._attempts._on_abandon
        failing = raising_for(stuck, RuntimeError("odd"), lambda attempt: True)
        monkeypatch.setattr(d.dispatcher._attempts, "_on_abandon", failing)
        d.feed(("stubborn", 1))
        async with asyncio.timeout(60):
            while not d.background.failures["time limits"]:
                await asyncio.sleep(0.005)
        d.feed(("s", 1))
        async with asyncio.timeout(60):
            while "s" not in ended:
                await asyncio.sleep(0.005)
        assert [letter.code for letter in d.letters()] == ["timed_out"]


@pytest.mark.parametrize("odd_ms", [10**18, -(10**18), 2**63 - 1])
async def test_a_time_that_is_none_fails_no_handler(odd_ms):
    times = []

    @every(name="h", retries=0)
    async def handle(event, ctx):
        times.append(ctx.received_at)

    async with dispatching(handle) as d:
        body = b"EventName=SessionFirstPartyRinging&SessionUUID=s&SequenceNumber=1"
        value = encode_callback(RawCallback("POST", b"", FORM_TYPE, body, odd_ms, "MA1"))
        decoded = d.partition.decode(
            [(f"{START_MS}-0".encode(), [CALLBACK_FIELD, value])], pending=False, now_ms=0
        )
        d.dispatcher.submit(d.partition.arrive(decoded, {}, START_MS))
        await d.until_handled()
        assert d.letters() == []
    assert times == [datetime.fromtimestamp(START_MS / 1000, UTC)]


def test_commit_that_cannot_be_encoded_delays_no_other_partition(crew: Fleet):
    """Real workers: the state of one session is something that msgpack cannot write."""
    program = """
import runpy
from maskline.worker.commands import scripts
real = scripts.commit
def commit(keys, partition, value, what, **more):
    if "odd" in what.states:
        raise OverflowError("int too big to convert")
    return real(keys, partition, value, what, **more)
scripts.commit = commit
runpy.run_module("maskline.worker", run_name="__main__", alter_sys=True)
"""
    worker = crew.start(program=program)
    crew.put("odd", 1)
    names = [f"s{n}" for n in range(20)]
    others = [n for n in names if partition_of(n, crew.partitions) != partition_of("odd", crew.partitions)]
    wait_until(lambda: worker.metric("background_failures_total", task="commits") > 0, within_s=PATIENCE_S)
    crew.put_all([(name, 1) for name in others])
    wait_until(lambda: {call.session for call in crew.calls()} >= set(others), within_s=PATIENCE_S)
    wait_until(lambda: {crew.group(partition_of(n, crew.partitions))["lag"] for n in others} == {0})
    assert worker.logged("background task failed")["task"] == "commits"
    assert worker.terminate() == 0
