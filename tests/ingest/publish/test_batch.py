"""One batch: whose outcome is known, what is handed on, and when its deadline is believed."""

import asyncio

import pytest

from maskline.ingest.publish.batch import DEADLINE_CHECKS_MAX, DEADLINE_RECHECK_S, Batch
from maskline.schemas.errors import RedisUnavailableError

TIMEOUT_S = 0.5


def batch_at(first_at: float) -> Batch:
    return Batch(first_at, lambda *_: None)


def batch_of(*values: bytes) -> Batch:
    batch = batch_at(10.0)
    loop = asyncio.get_running_loop()
    for number, value in enumerate(values):
        batch.partition_hashes.append(number)
        batch.values.append(value)
        batch.completions.append(loop.create_future())
    return batch


async def test_complete_groups_refused_callbacks_by_code_in_their_order():
    batch = batch_of(b"a", b"b", b"c", b"d", b"e")
    batch.completions[4].cancel()
    a, b, c, d, _ = batch.completions
    refused = batch.complete(["", "redis_oom", "redis_wrongtype", "redis_oom", "redis_oom"])
    assert a.result() is None
    assert refused == {
        "redis_oom": ([b, d], [1, 3], [b"b", b"d"]),
        "redis_wrongtype": ([c], [2], [b"c"]),
    }
    assert not any(completion.done() for completion in (b, c, d))


async def test_complete_page_gives_rows_that_were_not_appended_again_their_own_code():
    batch = batch_at(10.0)
    batch.page = page = asyncio.get_running_loop().create_future()
    batch.known = [True, False, True, False]
    batch.complete_page(["", "redis_oom"], "not_durable")
    assert page.result() == ["not_durable", "", "not_durable", "redis_oom"]
    batch.complete_page(["", ""], "")  # done already
    assert page.result()[3] == "redis_oom"


def test_first_check_of_a_deadline_is_never_believed():
    batch = batch_at(10.0)
    batch.sent_at = 10.4
    assert not batch.is_overdue(10.5, TIMEOUT_S)
    assert batch.check_at == pytest.approx(10.65)  # half the timeout after it was sent
    assert batch.is_overdue(batch.check_at, TIMEOUT_S)


def test_check_by_a_late_loop_is_repeated_a_bounded_number_of_times():
    batch, now, checks = batch_at(10.0), 20.0, 0
    while not batch.is_overdue(now, TIMEOUT_S):
        checks += 1
        now = batch.check_at + 2 * DEADLINE_RECHECK_S
    assert checks == DEADLINE_CHECKS_MAX


def test_replies_and_a_lost_connection_are_reported_once_with_the_batch():
    told: list[tuple[Batch, list[bytes] | None]] = []
    taken, lost = (Batch(10.0, lambda *outcome: told.append(outcome)) for _ in range(2))
    assert not taken.done()
    taken.set_result([b"1-0"])
    lost.set_exception(RedisUnavailableError("lost"))
    assert told == [(taken, [b"1-0"]), (lost, None)]
    assert taken.done()
    assert lost.done()


async def test_batch_that_was_given_up_holds_no_callbacks():
    batch = batch_of(b"a", b"b")
    batch.size_bytes = 2
    batch.give_up()
    assert batch.given_up
    assert (batch.completions, batch.partition_hashes, batch.values, batch.size_bytes) == ([], [], [], 0)
    assert batch.complete([]) == {}
