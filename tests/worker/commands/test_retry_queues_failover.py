"""Retry queues after a failover that lost the last commit: the owner begins anew from what is there, and nobody takes
a queue for one that brings workers down."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from replicated_kit import Replicated
from retry_queues_kit import PARTITION, QueueStore, open_connection
from servers import binary_of

from maskline.worker.commands import scripts
from maskline.worker.commands.retry_ops import Again, Append, Pop
from maskline.worker.partitions.history import Seen, has_all

pytestmark = [pytest.mark.server, pytest.mark.storage]


@pytest.fixture
def pair(server_kind: str, tmp_path: Path) -> Iterator[Replicated]:
    it = Replicated(tmp_path, binary=binary_of(server_kind)).start()
    yield it
    it.kill()


async def has_history(store: QueueStore, confirmed: int) -> bool:
    """As `worker.partitions.history_check` asks a server that it does not know."""
    packed = scripts.get_history(store.keys, PARTITION, "0-0")
    fence, found = await store.connection.send(packed, 2)
    return has_all(Seen(store.value, {confirmed: "0-0"}, "0-0", None), fence, found)


async def test_queues_are_as_the_new_primary_has_them_and_no_crash_is_counted(pair: Replicated):
    with pair.primary.client() as client:
        store = QueueStore(await open_connection(pair.primary.url), client)
        await store.own()
        await store.commit(Append("h", "s", 0, b"1"), Append("h", "s", 0, b"2"), Append("h", "t", 0, b"1"))
        assert len((await store.take()).queues) == 2
        await store.commit(Pop("h", "t"))
        pair.wait_in_sync()
        pair.stop_replication()
        await store.commit(Pop("h", "s"))
        await store.take()
        lost = store.next_commit(Again("h", "s", 0, b"2 failed"))
        store.connection.close()
    pair.fail_over()
    with pair.primary.client() as client:
        store.client, store.connection = client, await open_connection(pair.primary.url)
        assert not await has_history(store, confirmed=3)
        before = store.dump()
        assert await store.send(lost) == scripts.DIVERGED
        assert store.dump() == before
        for worker, takes in (("me", 1), ("other", 2)):
            await store.own_anew(worker)
            assert await has_history(store, confirmed=0)
            (queue,) = (await store.take()).queues
            assert (queue.session, queue.items, queue.takes) == ("s", [b"1", b"2"], takes)
        await store.commit(Pop("h", "s"), Pop("h", "s"))
        assert store.counts() == {}
        assert store.taken() == {}
        store.connection.close()
