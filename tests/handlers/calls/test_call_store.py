"""Several workers on the records of one session: owners that follow each other, and sweeps that race."""

import asyncio
from types import SimpleNamespace

import pytest
from servers import RedisServer
from structlog.testing import capture_logs

from maskline.handlers.redis_store import RedisRecordStore, call_store
from maskline.handlers.redis_store.call_store import CallStore, SessionLostError
from maskline.schemas.callback import CALLBACK_FIELD, decode_callback
from maskline.schemas.calls.observation import at
from maskline.schemas.decode import event_from_pairs
from maskline.schemas.emission import emitted_summary
from maskline.schemas.errors import ConfigError, RedisRefusesError
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

SESSION, OTHER = "s-1", "s-2"  # of one partition
START_MS = 1_767_600_000_000


class Owner:
    """A worker process, as the store sees it."""

    def __init__(self, server: RedisServer, namespace: str, **settings) -> None:
        self.settings = Settings(redis_url=server.url, namespace=namespace, partitions=2, **settings)
        self.records = RedisRecordStore(
            self.settings, "test", Keys.call_summary, Keys.call_summary_due, ttl_ms=10**7
        )
        self.store = CallStore(self.records, self.settings)

    async def __aenter__(self):
        await self.records.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.records.__aexit__(*error)

    async def handle(self, name: str, number: int, token: int = 1, session: str = SESSION, **parameters: str):
        given = {"EventName": name, "SessionUUID": session, "FirstParty": "+14155550123", **parameters}
        ctx = SimpleNamespace(
            sequence_number=number, order="in_order", missing=(), skipped=(), run=0, replayed=False,
            idempotency_key=f"{session}:{number}:ab", entry_id=f"{number}-0",
            received_at=at(START_MS + number), fencing_token=token,
        )  # fmt: skip
        return await self.store.add(event_from_pairs(list(given.items())), ctx)

    @property
    def keys(self) -> Keys:
        return self.records.client.keys

    @property
    def partition(self) -> int:
        return partition_of(SESSION, self.settings.partitions)

    def make_due(self, server: RedisServer, **at_ms: int) -> None:
        due = {session.replace("_", "-"): ms for session, ms in at_ms.items()}
        server.client().zadd(self.keys.call_summary_due(self.partition), due, xx=True)

    def emitted(self, server: RedisServer) -> list[tuple[int, int, str]]:
        keys = Keys(self.settings.namespace)
        stream = keys.callbacks(partition_of(SESSION, self.settings.partitions))
        summaries = [
            emitted_summary(decode_callback(fields[CALLBACK_FIELD]))
            for _, fields in server.client().xrange(stream)
        ]
        return [(one.call, one.revision, one.ended_by) for one in summaries]


async def test_an_owner_that_was_cut_off_is_refused_and_the_next_one_goes_on(redis_server, namespace):
    async with Owner(redis_server, namespace) as old, Owner(redis_server, namespace) as new:
        await old.handle("SessionFirstPartyRinging", 1)
        await new.handle("SessionFirstPartyHangup", 2, token=2)
        with pytest.raises(SessionLostError):
            await old.handle("SessionPartiesHangup", 3)
        assert old.emitted(redis_server) == []
        (summary,) = await new.handle("SessionPartiesHangup", 3, token=2)
        assert (summary.ended_by, summary.complete) == ("parties_hangup", True)
        assert await new.handle("SessionPartiesHangup", 3, token=3) == []
        assert new.emitted(redis_server) == [(1, 1, "parties_hangup")]


async def test_of_sweeps_that_race_one_emits_and_the_owner_goes_on_from_there(redis_server, namespace):
    async with Owner(redis_server, namespace) as one, Owner(redis_server, namespace) as other:
        await one.handle("SessionFirstPartyRinging", 1)
        assert await one.store.sweep() == []
        one.make_due(redis_server, s_1=1_000)
        swept = await asyncio.gather(*(owner.store.sweep() for owner in (one, other, one, other)))
        emitted = [summary for those in swept for summary in those]
        assert len(emitted) == 1
        assert one.emitted(redis_server) == [(1, 1, "silence")]
        await one.handle("SessionPartiesHangup", 2, Amount="0.02")
        assert one.emitted(redis_server) == [(1, 1, "silence"), (1, 2, "parties_hangup")]
        assert await other.store.sweep() == []


@pytest.mark.parametrize("broken", ["another type", "of no release"])
async def test_a_broken_record_keeps_no_other_session_from_its_end(
    redis_server, namespace, broken, monkeypatch
):
    monkeypatch.setattr(call_store, "SWEPT_MAX", 1)
    client = redis_server.client()
    async with Owner(redis_server, namespace) as owner:
        record = owner.keys.call_summary(owner.partition, SESSION)
        for session in (SESSION, OTHER):
            await owner.handle("SessionFirstPartyRinging", 1, session=session)
        owner.make_due(redis_server, s_1=1_000, s_2=2_000)
        if broken == "another type":
            client.set(record, "x")
        else:
            client.hset(record, "c:1", b"\xc1")
        with capture_logs() as logs:
            assert await owner.store.sweep() == []
            (summary,) = await owner.store.sweep()
        assert (summary.session_uuid, summary.ended_by) == (OTHER, "silence")
        assert [(log["event"], log["session"]) for log in logs] == [("silent session not ended", SESSION)]
        due_ms = client.zscore(owner.keys.call_summary_due(owner.partition), SESSION)
        assert due_ms / 1000 - client.time()[0] == pytest.approx(call_store.POSTPONED_MS / 1000, rel=0.2)


async def test_while_the_group_is_behind_only_what_it_has_read_past_is_silent(redis_server, namespace):
    client = redis_server.client()
    async with Owner(redis_server, namespace) as owner:
        stream, group = owner.keys.callbacks(owner.partition), owner.settings.group
        for at_ms in (1_000, 2_000, 4_000):
            client.xadd(stream, {"c": b""}, id=f"{at_ms}-0")
        for session in (SESSION, OTHER):
            await owner.handle("SessionFirstPartyRinging", 1, session=session)
        owner.make_due(redis_server, s_1=1_500, s_2=3_000)
        client.xgroup_create(stream, group, "1000-0")
        assert await owner.store.sweep() == []
        client.xgroup_setid(stream, group, "2000-0")
        assert [one.session_uuid for one in await owner.store.sweep()] == [SESSION]
        client.xgroup_setid(stream, group, "4000-0")
        assert [one.session_uuid for one in await owner.store.sweep()] == [OTHER]


async def test_what_redis_refuses_fails_the_handler_and_is_done_at_the_next_try(own_redis, namespace):
    async with Owner(own_redis, namespace) as owner:
        client = own_redis.client()
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisRefusesError, match="OOM"):
            await owner.handle("SessionPartiesHangup", 1, Amount="0.02")
        client.config_set("maxmemory", 0)
        assert len(await owner.handle("SessionPartiesHangup", 1, Amount="0.02")) == 1
        assert owner.emitted(own_redis) == [(1, 1, "parties_hangup")]


def test_records_must_outlive_the_silence(redis_server, namespace):
    with pytest.raises(ConfigError, match="MASKLINE_CALL_SILENCE_S must be shorter"):
        Owner(redis_server, namespace, call_silence_s=100, call_summary_ttl_s=100)
