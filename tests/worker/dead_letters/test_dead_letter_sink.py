"""Handlers of dead letters are called once for each letter, by a real server: through restarts, and two owners."""

import asyncio
import contextvars
from contextlib import asynccontextmanager

import pytest
from dispatch_kit import PATIENCE_S, partition_of_test, until
from structlog.testing import capture_logs
from worker_parts_kit import Parts, worker_parts

from maskline.worker.api.binding import BoundDeadHandler
from maskline.worker.dead_letters import sink as module
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.dead_letters.seen import STARTS_MAX, Seen
from maskline.worker.dead_letters.sink import DeadLetterSink
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, encode_dead_letter, public_id
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.phase import Phase


class Handler:
    """A handler of dead letters that a test can hold up."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def handle(self, letter, ctx) -> None:
        self.called.append(letter.reason)
        await self.may_end.wait()

    def calls(self, timeout_s: float = 20.0) -> DeadLetterCalls:
        bound = BoundDeadHandler("sink", self.handle, timeout_s)
        return DeadLetterCalls([bound], contextvars.copy_context(), entry_decoder())


class Owner:
    """A worker's sink, with partitions of its own."""

    def __init__(self, parts: Parts, handler: Handler, timeout_s: float = 20.0) -> None:
        self.parts = parts
        self.handler = handler
        self.sink = DeadLetterSink(parts.connections, parts.keys, parts.owned, handler.calls(timeout_s))
        self.task = asyncio.create_task(self.sink.run())

    def add(self, number: int, *, token: int = 7) -> Partition:
        partition = partition_of_test(number, token=token)
        self.parts.owned.add(partition)
        self.parts.owned.move(partition, Phase.OPEN)
        return partition

    async def go_down(self) -> None:
        """As a crash would: nothing more is called or written."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def write(parts: Parts, number: int, *reasons: str, group: str = "workers") -> list[bytes]:
    client = parts.redis_client
    return [
        client.xadd(
            parts.keys.dead(number),
            {DEAD_FIELD: encode_dead_letter(DeadLetter(group, "1-1", "rejected", reason, 5, b"x"))},
        )
        for reason in reasons
    ]


def seen_of(parts: Parts, number: int) -> Seen:
    return Seen.read(parts.redis_client.get(parts.keys.dead_seen(number)))


@pytest.fixture
async def parts(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as it:
        it.redis_client = redis_server.client()
        yield it


@asynccontextmanager
async def owner_of(parts, *, timeout_s=20.0):
    owner = Owner(parts, Handler(), timeout_s)
    try:
        yield owner
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await owner.go_down()


async def test_every_letter_is_handled_once_in_order_whenever_it_is_written(parts):
    async with owner_of(parts) as owner:
        partition = owner.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        write(parts, 0, "a", "b")
        owner.sink.look(partition)
        await until(lambda: owner.handler.called == ["a", "b"])
        many = [f"c{number}" for number in range(3 * module.PAGE_LETTERS)]
        for reason in many:
            write(parts, 0, reason)
            owner.sink.look(partition)
        await until(lambda: len(owner.handler.called) >= 2 + len(many))
        assert owner.handler.called == ["a", "b", *many]


async def test_letters_from_before_the_first_such_handler_are_left_alone(parts):
    (old,) = write(parts, 0, "old")
    old_ms = int(old.partition(b"-")[0])

    def server_ms():
        seconds, microseconds = parts.redis_client.time()
        return seconds * 1000 + microseconds // 1000

    await until(lambda: server_ms() > old_ms + 5)  # beyond what rounding could hide
    async with owner_of(parts) as owner:
        await until(lambda: server_ms() > old_ms + 10)
        # Between the worker's start and its first look at the partition: by another worker, without such a handler.
        write(parts, 0, "new")
        owner.add(0)
        await until(lambda: owner.handler.called == ["new"])
    assert owner.handler.called == ["new"]


async def test_letters_of_other_groups_and_what_is_no_letter_are_passed_and_not_read_again(parts):
    async with owner_of(parts) as owner:
        partition = owner.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        write(parts, 0, *("theirs" for _ in range(2 * module.PAGE_LETTERS)), group="others")
        parts.redis_client.xadd(parts.keys.dead(0), {DEAD_FIELD: b"no letter"})
        (last,) = [parts.redis_client.xadd(parts.keys.dead(0), {b"x": b"y"})]
        owner.sink.look(partition)
        await until(lambda: seen_of(parts, 0).done == last.decode())
        (ours,) = write(parts, 0, "ours")
        owner.sink.look(partition)
        await until(lambda: seen_of(parts, 0).done == ours.decode())
    assert owner.handler.called == ["ours"]


async def test_the_next_owner_goes_on_where_the_last_one_was_and_misses_nothing(parts):
    async with owner_of(parts) as first:
        partition = first.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        write(parts, 0, "a")
        first.sink.look(partition)
        await until(lambda: seen_of(parts, 0).begun is None and first.handler.called == ["a"])
    parts.owned.move(partition, Phase.LOST)
    parts.owned.remove(partition)
    write(parts, 0, "b", "c")
    async with owner_of(parts) as second:
        second.add(0, token=8)
        await until(lambda: second.handler.called == ["b", "c"])


async def test_a_letter_under_way_at_a_crash_is_handled_again_and_no_other(parts, monkeypatch):
    monkeypatch.setattr(module, "OTHER_CHECK_S", 0.01)
    async with owner_of(parts) as first:
        partition = first.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        write(parts, 0, "a", "b", "c")
        first.handler.may_end.clear()
        first.sink.look(partition)
        await until(lambda: first.handler.called == ["a"])
    parts.owned.remove(partition)
    assert seen_of(parts, 0).starts == 1
    async with owner_of(parts) as second:
        monkeypatch.setattr(DeadLetterCalls, "longest_s", 0.05)
        second.add(0, token=8)
        await until(lambda: second.handler.called == ["a", "b", "c"])


async def test_a_letter_that_the_last_owner_is_still_at_is_not_handled_twice(parts, monkeypatch):
    """A hand-over meanwhile: the new owner waits until the old one has finished it."""
    monkeypatch.setattr(module, "OTHER_CHECK_S", 0.01)
    async with owner_of(parts) as old:
        partition = old.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        write(parts, 0, "a", "b")
        old.handler.may_end.clear()
        old.sink.look(partition)
        await until(lambda: old.handler.called == ["a"])
        parts.owned.move(partition, Phase.LOST)
        parts.owned.remove(partition)
        async with owner_of(parts) as new:
            old.sink.start_no_more()
            new.add(0, token=8)
            await until(lambda: new.sink._working)
            old.handler.may_end.set()
            await until(lambda: new.handler.called == ["b"])
            await until(lambda: seen_of(parts, 0).begun is None)
        assert old.handler.called == ["a"]


async def test_a_letter_whose_handlers_bring_down_each_worker_is_passed_over(parts):
    (first, _) = write(parts, 0, "deadly", "next")
    deadly = first.decode()
    parts.redis_client.set(parts.keys.dead_seen(0), Seen("0-0", deadly, STARTS_MAX, 7).encode())
    with capture_logs() as lines:
        async with owner_of(parts) as owner:
            owner.add(0)
            await until(lambda: owner.handler.called == ["next"])
    (line,) = (line for line in lines if line["event"] == "dead letter handlers passed a letter over")
    assert (line["letter"], line["starts"]) == (public_id(0, deadly), STARTS_MAX)


async def test_letters_that_were_discarded_meanwhile_are_no_obstacle(parts):
    ids = write(parts, 0, "a", "b", "c")
    parts.redis_client.set(parts.keys.dead_seen(0), Seen("0-0", ids[0].decode(), 2, 6).encode())
    parts.redis_client.xdel(parts.keys.dead(0), *ids[:2])
    async with owner_of(parts) as owner:
        owner.add(0)
        await until(lambda: owner.handler.called == ["c"])


async def test_a_stop_waits_for_the_letter_under_way_and_begins_no_other(parts):
    async with owner_of(parts) as owner:
        partition = owner.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        (first, _) = write(parts, 0, "a", "b")
        owner.handler.may_end.clear()
        owner.sink.look(partition)
        await until(lambda: owner.handler.called == ["a"])
        owner.sink.start_no_more()
        stop = asyncio.create_task(owner.sink.stop(PATIENCE_S))
        await asyncio.sleep(0)
        assert not stop.done()
        owner.handler.may_end.set()
        await stop
        assert seen_of(parts, 0) == Seen(first.decode(), None, 0, 7)
        await owner.sink.stop(0)
    assert owner.handler.called == ["a"]


async def test_letters_wait_while_the_lease_may_have_lapsed_and_go_on_after(parts):
    async with owner_of(parts) as owner:
        partition = owner.add(0)
        await until(lambda: parts.redis_client.exists(parts.keys.dead_seen(0)))
        lasting, partition.lease_until = partition.lease_until, 0.0
        write(parts, 0, "a")
        owner.sink.look(partition)
        await until(lambda: not owner.sink._queued)
        assert owner.handler.called == []
        partition.lease_until = lasting
        await until(lambda: owner.handler.called == ["a"])


async def test_a_value_that_cannot_be_read_is_named_and_goes_on_once_it_is_mended(parts):
    key = parts.keys.dead_seen(0)
    parts.redis_client.set(key, "rubbish")
    write(parts, 0, "a")
    with capture_logs() as lines:
        async with owner_of(parts) as owner:
            owner.add(0)
            await until(lambda: any(line["event"] == "dead letters not read" for line in lines))
            parts.redis_client.set(key, "0-0 - 0 0")
            await until(lambda: owner.handler.called == ["a"])
    assert key in lines[0]["reason"]


async def test_partitions_are_worked_on_beside_each_other(parts):
    async with owner_of(parts) as owner:
        for number in range(2):
            parts.redis_client.set(parts.keys.dead_seen(number), "0-0 - 0 0")
            write(parts, number, f"p{number}")
        owner.handler.may_end.clear()
        for number in range(2):
            owner.add(number)
        await until(lambda: sorted(owner.handler.called) == ["p0", "p1"])
        owner.handler.may_end.set()
