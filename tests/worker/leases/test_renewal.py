"""What a renewal request brings back from a real server: kept and lost leases, holders, live workers, or nothing."""

import asyncio

from dispatch_kit import PATIENCE_S, until
from worker_parts_kit import WORKER_ID, worker_parts

from maskline.runtime.clock import lease_clock
from maskline.worker.leases.planner import RenewalReply, RenewalRequest
from maskline.worker.leases.renewal import LeaseRenewer

TIMEOUT_S = 10.0


def known(reply: RenewalReply) -> dict:
    """The fields of a reply that say something."""
    return {name: value for name, value in reply._asdict().items() if value}


def renewer(parts, late=None) -> LeaseRenewer:
    return LeaseRenewer(
        parts.connections,
        parts.keys,
        worker_id=WORKER_ID,
        lease_ttl_ms=parts.settings.lease_ttl_ms,
        on_late_reply=lambda *reply: late.append(reply),
    )


async def test_own_leases_are_kept_and_those_of_others_are_lost(redis_server, namespace):
    async with worker_parts(redis_server, namespace, partitions=3) as parts:
        with redis_server.client() as client:
            client.set(parts.keys.lease(0), f"7 {WORKER_ID}", px=1_000)
            client.set(parts.keys.lease(1), "9 other", px=60_000)
            reply = await renewer(parts).renew(RenewalRequest(False, {0: 7, 1: 8, 2: 5}, ()), TIMEOUT_S)
            assert known(reply) == {"kept": {0: True, 1: False, 2: False}}
            assert client.pttl(parts.keys.lease(0)) > 50_000


async def test_probes_find_holders_and_free_partitions(redis_server, namespace):
    async with worker_parts(redis_server, namespace, partitions=3) as parts:
        with redis_server.client() as client:
            client.set(parts.keys.lease(1), "9 other with spaces", px=60_000)
        reply = await renewer(parts).renew(RenewalRequest(False, {}, [0, 1, 2]), TIMEOUT_S)
        assert known(reply) == {"taken": {1: "other with spaces"}, "free": [0, 2]}


async def test_heartbeat_brings_the_live_workers_and_when_the_next_lapses(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        one = renewer(parts)
        alone = await one.renew(RenewalRequest(True, {}, ()), TIMEOUT_S)
        assert (alone.live, alone.next_lapse_ms) == ((WORKER_ID,), None)
        with redis_server.client() as client:
            seconds, microseconds = client.time()
            client.zadd(parts.keys.workers, {"other": seconds * 1000 + microseconds // 1000})
        both = await one.renew(RenewalRequest(True, {}, ()), TIMEOUT_S)
        assert sorted(both.live) == [WORKER_ID, "other"]
        assert 0 < both.next_lapse_ms <= parts.settings.lease_ttl_ms


async def test_lease_that_cannot_be_renewed_is_not_known_and_the_others_are(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            client.lpush(parts.keys.lease(0), "another type of key")
            client.set(parts.keys.lease(1), f"7 {WORKER_ID}", px=1_000)
        reply = await renewer(parts).renew(RenewalRequest(False, {0: 7, 1: 7}, [0]), TIMEOUT_S)
        assert known(reply) == {"kept": {1: True}}


async def test_late_reply_counts_for_the_leases_renewed_alone_from_when_they_were_asked_for(
    own_redis, namespace
):
    async with worker_parts(own_redis, namespace) as parts:
        with own_redis.client() as client:
            client.set(parts.keys.lease(0), f"7 {WORKER_ID}", px=60_000)
        late = []
        one = renewer(parts, late)
        own_redis.pause()
        try:
            before = lease_clock()
            request = RenewalRequest(True, {0: 7}, [1])
            assert known(await one.renew(request, 0.05)) == {}
            assert known(await one.renew(request, 0.05)) == {}, "a server under way is not asked again"
            after = lease_clock()
        finally:
            own_redis.resume()
        await until(lambda: late)
        ((asked, reply, sent_at),) = late
        assert asked == RenewalRequest(False, {0: 7}, ())
        assert known(reply) == {"kept": {0: True}}
        assert before <= sent_at <= after
        async with asyncio.timeout(PATIENCE_S):
            again = await one.renew(request, TIMEOUT_S)
        assert (again.kept, again.free) == ({0: True}, [1])


async def test_nothing_is_known_while_the_server_is_away(own_redis, namespace):
    async with worker_parts(own_redis, namespace) as parts:
        own_redis.kill()
        reply = await renewer(parts).renew(RenewalRequest(True, {0: 7}, [1]), TIMEOUT_S)
        assert known(reply) == {}
