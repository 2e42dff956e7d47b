"""Several workers on the records of one session: owners that follow each other, and sweeps that race."""

import asyncio
from types import SimpleNamespace

import pytest
from servers import RedisServer

from maskline.handlers.redis_store import RedisRecordStore
from maskline.handlers.redis_store.call_store import CallStore, SessionLostError
from maskline.schemas.callback import CALLBACK_FIELD, decode_callback
from maskline.schemas.calls.observation import at
from maskline.schemas.decode import event_from_pairs
from maskline.schemas.emission import emitted_summary
from maskline.schemas.errors import ConfigError, RedisRefusesError
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

SESSION = "s-1"
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

    async def handle(self, name: str, number: int, token: int = 1, **parameters: str):
        given = {"EventName": name, "SessionUUID": SESSION, "FirstParty": "+14155550123", **parameters}
        ctx = SimpleNamespace(
            sequence_number=number, order="in_order", missing=(), skipped=(), run=0, replayed=False,
            idempotency_key=f"{SESSION}:{number}:ab", entry_id=f"{number}-0",
            received_at=at(START_MS + number), fencing_token=token,
        )  # fmt: skip
        return await self.store.add(event_from_pairs(list(given.items())), ctx)

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
    async with (
        Owner(redis_server, namespace, call_silence_s=1) as one,
        Owner(redis_server, namespace, call_silence_s=1) as other,
    ):
        await one.handle("SessionFirstPartyRinging", 1)
        assert await one.store.sweep() == []
        emitted: list = []
        async with asyncio.timeout(20):
            while not emitted:
                await asyncio.sleep(0.02)
                swept = await asyncio.gather(*(owner.store.sweep() for owner in (one, other, one, other)))
                emitted = [summary for those in swept for summary in those]
        assert len(emitted) == 1
        assert one.emitted(redis_server) == [(1, 1, "silence")]
        await one.handle("SessionPartiesHangup", 2, Amount="0.02")
        assert one.emitted(redis_server) == [(1, 1, "silence"), (1, 2, "parties_hangup")]
        assert await other.store.sweep() == []


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
