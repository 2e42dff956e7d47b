"""The scripts that keep and remove refused requests, on a real server: bounds, shares, ages, and their bookkeeping."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import RedisServer, wait_until

from maskline.ingest.refused import scripts
from maskline.schemas.keys import Keys

OVERHEAD = 256
HOUR_MS = 3_600_000
MAX_BYTES = 10 * (OVERHEAD + 100)

pytestmark = pytest.mark.storage


class Store:
    """What the scripts have written in one namespace, read by other means."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.client = client
        self.keys = Keys(namespace).refused

    def keep(
        self, *requests: tuple[str, bytes], max_bytes: int = MAX_BYTES, ttl_ms: int = HOUR_MS
    ) -> scripts.Kept:
        values = [part for pair in requests for part in pair]
        return scripts.read_kept(self.client.eval(scripts._KEEP, 4, *self.keys, max_bytes, ttl_ms, *values))

    def remove(self, *ids: bytes) -> int:
        return int(self.client.eval(scripts._REMOVE, 4, *self.keys, *ids))

    @property
    def entries(self) -> list[tuple[bytes, str, bytes]]:
        return [
            (entry_id, fields[b"s"].decode(), fields[b"r"])
            for entry_id, fields in self.client.xrange(self.keys.requests)
        ]

    def requests_of(self, share: str) -> list[bytes]:
        return [request for _, of, request in self.entries if of == share]

    def check(self) -> None:
        """The shares, the ages and the total are what follows from the requests that are there."""
        sizes: Counter[str] = Counter()
        for _, share, request in self.entries:
            sizes[share] += len(request) + OVERHEAD
        assert {
            share.decode(): score
            for share, score in self.client.zrange(self.keys.shares, 0, -1, withscores=True)
        } == sizes
        assert int(self.client.get(self.keys.total) or 0) == sum(sizes.values())
        ages = [member.decode().split() for member in self.client.zrange(self.keys.ages, 0, -1)]
        found = {
            (share, "-".join(str(int(part)) for part in padded.split("-")), int(size))
            for share, padded, size in ages
        }
        assert found == {
            (share, entry_id.decode(), len(request) + OVERHEAD) for entry_id, share, request in self.entries
        }


@pytest.fixture
def store(redis_server: RedisServer, namespace: str) -> Any:
    with redis_server.client() as client:
        yield Store(client, namespace)
        client.delete(*Keys(namespace).refused)


def of_size(number: int, size: int = 100) -> bytes:
    return b"%d" % number + b"." * (size - len(b"%d" % number))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.lists(
                st.tuples(st.sampled_from(["10.0.0.1", "2001:db8::/64", "b", "c"]), st.integers(0, 900)),
                max_size=6,
            ),
            st.integers(0, 9),
        ),
        max_size=15,
    )
)
def test_books_are_right_after_anything(store, steps):
    store.client.delete(*store.keys)
    for step in steps:
        if isinstance(step, int):
            ids = [entry_id for entry_id, _, _ in store.entries]
            assert store.remove(*ids[step : step + 2], *ids[step : step + 1]) == len(ids[step : step + 2])
        else:
            before = len(store.entries)
            kept = store.keep(*((share, b"r" * size) for share, size in step))
            assert len(store.entries) == before + kept.kept - kept.pushed_out
        store.check()
        assert int(store.client.get(store.keys.total) or 0) <= MAX_BYTES


def test_flood_pushes_out_itself_and_nothing_else(store):
    others = [(share, of_size(number)) for number, share in enumerate(("b", "c", "b", "c"))]
    store.keep(*others)
    for first in range(0, 60, 20):
        store.keep(*(("flood", of_size(number)) for number in range(first, first + 20)))
    assert [(share, request) for _, share, request in store.entries if share != "flood"] == others
    assert store.requests_of("flood") == [of_size(number) for number in range(54, 60)], (
        "its newest, in all the rest"
    )
    store.keep(*(("b", of_size(number)) for number in range(4, 12)))
    kept = Counter(share for _, share, _ in store.entries)
    assert kept == {"flood": 4, "b": 4, "c": 2}, "shares grow alike, where addresses want more"
    store.check()


def test_request_larger_than_all_the_room_is_not_kept(store):
    store.keep(("a", of_size(1)))
    assert store.keep(("b", b"r" * MAX_BYTES)).kept == 0
    assert store.keep(("b", of_size(2))).kept == 1


def test_what_is_too_old_goes_first(store):
    store.keep(*(("a", of_size(number)) for number in range(10)))
    last_ms = int(store.entries[-1][0].partition(b"-")[0])

    def now_ms() -> float:
        seconds, microseconds = store.client.time()
        return seconds * 1000 + microseconds / 1000

    wait_until(lambda: now_ms() > last_ms + 22, what="that all are older than 20 ms")
    with store.client.pipeline(transaction=True) as at_once:  # what is kept now is gone in 20 ms
        at_once.eval(scripts._KEEP, 4, *store.keys, MAX_BYTES, 20, "b", of_size(1))
        at_once.zrange(store.keys.shares, 0, -1, withscores=True)
        at_once.get(store.keys.total)
        at_once.zcard(store.keys.ages)
        reply, shares, total, ages = at_once.execute()
    assert scripts.read_kept(reply) == scripts.Kept(kept=1, pushed_out=0, expired=10)
    assert (shares, int(total), ages) == ([(b"b", OVERHEAD + 100)], OVERHEAD + 100, 1)


def test_all_of_it_expires_when_nothing_comes_any_more(store):
    store.keep(("a", of_size(1)), ttl_ms=20)
    wait_until(lambda: not store.client.exists(*store.keys), within_s=60, what="that the keys have expired")


def test_lowered_bound_is_reached_step_by_step(store):
    requests = [("a", b"")] * 2_000
    store.keep(*requests, max_bytes=1 << 30)
    kept = store.keep(("b", b""), max_bytes=OVERHEAD)
    assert (kept.kept, kept.pushed_out) == (0, 1_000), "a call is bounded, and adds nothing meanwhile"
    assert store.keep(("b", b""), max_bytes=OVERHEAD).pushed_out == 1_000
    assert store.keep(("b", b""), max_bytes=OVERHEAD).kept == 1
    store.check()


def test_full_server_takes_no_refused_requests_and_lets_them_go(own_redis: RedisServer, namespace: str):
    with own_redis.client() as client:
        store = Store(client, namespace)
        store.keep(("a", of_size(1)))
        client.config_set("maxmemory", 1)
        with pytest.raises(Exception, match="maxmemory"):
            store.keep(("a", of_size(2)))
        assert store.remove(store.entries[0][0]) == 1


def test_release_appends_a_request_once(store, namespace):
    keys = Keys(namespace)
    arguments = (scripts._RELEASE, 2, keys.callbacks(1), keys.released(1), "key-1", b"value", b"c", HOUR_MS)
    assert [store.client.eval(*arguments) for _ in range(3)] == [1, 0, 0]
    assert [fields for _, fields in store.client.xrange(keys.callbacks(1))] == [{b"c": b"value"}]
    assert 0 < store.client.pttl(keys.released(1)) <= HOUR_MS
