"""The table that a failed test shows: whole, narrow, and without phone numbers."""

import re
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline import Reject, on
from maskline.events import SessionFirstPartyRinging
from maskline.testing import Harness, callback
from maskline.worker.testing.order_table import ROWS_MAX, TABLE_WIDTH, Block, Row, order_table

TEXTS = st.text(max_size=200)
ROWS = st.builds(
    Row, st.none() | st.integers(0, 10**13), st.sampled_from(["a", "b", ""]) | TEXTS, TEXTS,
    st.none() | st.integers(0, 2**53), TEXTS,
)  # fmt: skip


@given(st.lists(st.builds(Block, TEXTS, st.lists(ROWS, max_size=5)), max_size=4), st.integers(0, 10**13))
def test_no_line_is_wider_than_a_terminal(blocks, now_ms):
    table = order_table(blocks, start_ms=0, now_ms=now_ms, hide=str)

    assert all(len(line) <= TABLE_WIDTH for line in table.split("\n"))


def test_of_many_rows_the_last_are_shown():
    rows = [Row(number, f"ride-{number}", "SessionTimeout", number, "") for number in range(ROWS_MAX + 7)]

    table = order_table([Block("arrived", rows), Block("empty", [])], start_ms=0, now_ms=0, hide=str)

    assert "  … 7 before these" in table
    assert "empty" not in table
    assert "session a is ride-7\n" in table
    assert "ride-6\n" not in table
    assert table.count("SessionTimeout") == ROWS_MAX


async def test_it_shows_what_arrived_what_was_handled_and_what_waits():
    @on(SessionFirstPartyRinging, name="fares", retries=1)
    async def fares(event, ctx):
        if event.sequence_number == 1:
            raise ValueError(f"no fare for {event.from_number} or 415_555_0123")
        if event.sequence_number == 6:
            raise Reject("never")

    @on(SessionFirstPartyRinging, name="other", on_give_up="skip")
    async def other(event, ctx):
        if event.sequence_number == 1:
            raise Reject("no")

    module = ModuleType("m")
    vars(module).update(fares=fares, other=other)
    async with Harness(module, retry_waits=True) as harness:
        ringing = [
            callback("SessionFirstPartyRinging", sequence_number=number, from_number="+14155550123")
            for number in range(10)
        ]
        await harness.feed(ringing[2], ringing[1], ringing[1], {"EventName": "x"})
        await harness.pass_time(1)
        await harness.feed(ringing[6])
        await harness.pass_time(5)
        await harness.feed(ringing[9])
        await harness.pause("fares")
        await harness.feed(callback("SessionFirstPartyRinging", sequence_number=1, session_uuid="two"))
        table = re.sub(r"num_\w+", "num_…", harness.order_table())

    assert table == TABLE


TABLE = """\
at +6.000s of the harness's time
session a is 5e551011-0000-4000-8000-000000000000
session b is (none)
session c is two

arrived
    +0.000s a  SessionFirstPartyRinging           2  had to wait
    +0.000s a  SessionFirstPartyRinging           1
    +0.000s a  SessionFirstPartyRinging           1  duplicate
    +0.000s b  (not readable)                     -  dead letter
    +1.000s a  SessionFirstPartyRinging           6  had to wait
    +6.000s a  SessionFirstPartyRinging           9  had to wait
    +6.000s c  SessionFirstPartyRinging           1

fares got
    +0.000s a  SessionFirstPartyRinging           1
               in_order, attempt 1: ValueError: no fare for num_… or
               num_…
    +0.500s a  SessionFirstPartyRinging           1
               in_order, attempt 2: ValueError: no fare for num_… or
               num_…

other got
    +0.000s a  SessionFirstPartyRinging           1
               in_order, attempt 1: Reject: no
    +0.000s a  SessionFirstPartyRinging           2  in_order, skipped 1
    +6.000s a  SessionFirstPartyRinging           6
               after_gap, missing 3-5, skipped 1
    +6.000s c  SessionFirstPartyRinging           1
               in_order, attempt 1: Reject: no

wait for others in their session
    +6.000s a  SessionFirstPartyRinging           9
               for number 7, until +11.000s

wait for fares
            c  SessionFirstPartyRinging           1
               set aside, due +6.000s (the handler is paused)
            a  SessionFirstPartyRinging           2  parked behind a dead letter
            a  SessionFirstPartyRinging           6  behind it

dead letters
    +0.000s b  (not readable)                     -
               no handler: no session uuid: the callback names no SessionUUID
    +0.000s a  SessionFirstPartyRinging           1  other: rejected: no
    +0.500s a  SessionFirstPartyRinging           1
               fares (parked): retries exhausted after 2 attempts: ValueError:
               no fare for num_… or num_…
    +6.000s c  SessionFirstPartyRinging           1  other: rejected: no"""


@pytest.mark.parametrize("numbers", [(), (3,), (3, 4, 5, 8)])
async def test_missing_numbers_are_drawn_together(numbers):
    @on.every(name="h")
    async def handle(event, ctx):
        pass

    module = ModuleType("m")
    module.handle = handle
    async with Harness(module) as harness:
        given = [number for number in range(1, 10) if number not in numbers]
        await harness.feed(*(callback("SessionTimeoutSoon", sequence_number=number) for number in given))
        await harness.pass_time(60)
        table = harness.order_table()
    assert ("missing 3-5" in table, "missing 8" in table) == (len(numbers) > 1,) * 2
