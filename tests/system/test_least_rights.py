"""Ingest and worker with the rights that docs/operating.md gives them, and no others: nothing they do is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from process_kit import PATIENCE_S, Fleet, fleet
from retry_queues_kit import QueueStore, open_connection
from servers import RedisServer, plain_reply, wait_until
from system_kit import AUTH_ID, AUTH_TOKEN, ingest, post_all

from maskline.handlers.redis_store import EmittedEntry, RecordChange, RedisRecordStore
from maskline.runtime.redis.tracking import track_reads
from maskline.schemas.calls.observation import Observation
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    DeleteJob,
    DeleteLetter,
    GiveUpWaiting,
    Park,
    Pop,
    Requeue,
    Unpark,
    Untake,
    WriteJob,
)

DOCS = Path(__file__).parents[2] / "docs" / "operating.md"
INGEST, WORKER, FINDER = "maskline-ingest", "maskline-worker", "maskline-finder"
OPERATOR = "maskline-operator"
PASSWORDS = {
    INGEST: "INGEST_PASSWORD",
    WORKER: "WORKER_PASSWORD",
    FINDER: "FINDER_PASSWORD",
    OPERATOR: "OPERATOR_PASSWORD",
}
PARTITIONS = 4

pytestmark = pytest.mark.server


def commands_of_docs() -> list[tuple[str, list[str]]]:
    """The commands of the section, each with the comment above it ("" for the two that everybody needs)."""
    section = DOCS.read_text().partition("\n## Least rights\n")[2].partition("\n## ")[0]
    found, purpose = [], ""
    for line in section.splitlines():
        if line.startswith("# "):
            purpose = line.removeprefix("# ")
        elif line.startswith("ACL SETUSER "):
            found.append((purpose, line.split()))
    return found


def give_rights(port: int, *purposes: str) -> None:
    """Make the users on a server, with what the docs say for everybody and for these purposes."""
    for purpose, command in commands_of_docs():
        if not purpose or any(purpose.startswith(one) for one in purposes):
            assert plain_reply(port, *command) == b"OK"


def refused(port: int) -> list[str]:
    """What ACL LOG tells, as `user: command or key`."""
    entries = []
    for reply in plain_reply(port, "ACL", "LOG", 100):
        entry = dict(zip(reply[::2], reply[1::2], strict=True))
        entries.append(
            f"{entry[b'username'].decode()}: {entry[b'object'].decode()} ({entry[b'context'].decode()})"
        )
    return entries


def with_login(url: str, user: str) -> str:
    return url.replace("://", f"://{user}:{PASSWORDS[user]}@", 1)


def simulate(crew: Fleet, url: str) -> None:
    played = subprocess.run(
        [
            str(Path(sys.executable).with_name("maskline")),
            "simulate",
            "--url",
            url,
            "--sessions",
            "30",
            "--calls",
            "1",
            "--rate",
            "0",
            "--shuffle",
            "0.5",
            "--duplicates",
            "0.1",
            "--seed",
            "7",
            "--json",
        ],
        env=crew.environment(auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr


def stored(crew: Fleet, until: Callable[[int], bool]) -> None:
    """Wait until enough callbacks lie in the streams: not in the spool, where a refused command would leave them."""

    def enough() -> bool:
        return until(sum(crew.client.xlen(crew.keys.callbacks(number)) for number in range(crew.partitions)))

    wait_until(enough, within_s=PATIENCE_S, what="callbacks in the streams")


def whole_life(crew: Fleet, url: str) -> None:
    """Everything that processes do: take, spool, order, hold, fail, die, take over, trim, give back."""
    with ingest(crew, redis_url=with_login(url, INGEST)) as takes:
        worker_url = with_login(url, WORKER)
        first = crew.start(redis_url=worker_url, gap_timeout_ms=60_000, retention_s=0)
        simulate(crew, takes)
        stored(crew, lambda count: count > 100 or bool(crew.calls()))
        crew.until_drained()
        crew.server.pause()
        assert post_all(takes, ["spooled"], 1) == {200}
        crew.server.resume()
        crew.until_calls(1, "spooled")
        crew.put("fail1", 1)
        wait_until(crew.dead_letters, within_s=PATIENCE_S, what="a dead letter")
        crew.put("gap", 2)
        crew.put("slow1", 1)
        crew.until_calls(1, "slow1")
        first.kill()
        second = crew.start(redis_url=worker_url, gap_timeout_ms=60_000, retention_s=0)
        crew.until_balanced(1)
        crew.put("gap", 1)
        crew.until_calls(2, "gap")
        crew.until_drained()
        assert second.terminate() == 0
    assert not crew.leases()


@pytest.mark.storage
def test_nodes_work_with_the_documented_rights(own_redis: RedisServer, tmp_path: Path):
    give_rights(own_redis.port)
    with fleet(own_redis, "maskline", tmp_path, partitions=PARTITIONS) as crew:
        whole_life(crew, own_redis.url)
    assert refused(own_redis.port) == []


@pytest.mark.storage
def test_refused_callbacks_are_kept_and_released_with_the_documented_rights(
    own_redis: RedisServer, tmp_path: Path
):
    give_rights(own_redis.port, "the operator's commands")
    with fleet(own_redis, "maskline", tmp_path, partitions=PARTITIONS) as crew:
        mistaken = f"{AUTH_ID}:mistaken"
        kept = crew.keys.refused.requests
        login = with_login(own_redis.url, INGEST)
        with ingest(crew, redis_url=login, auth_tokens=mistaken, refused_max_bytes=3_000) as url:
            for number in range(1, 6):  # the first ones make room for the last
                assert post_all(url, ["s1"], number) == {403}
        assert crew.client.xinfo_stream(kept)["entries-added"] == 5 > crew.client.xlen(kept)
        operator = crew.environment(
            redis_url=with_login(own_redis.url, OPERATOR), auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}"
        )
        for arguments in (["list"], ["release", "--all", "--yes"]):
            done = subprocess.run(
                [str(Path(sys.executable).with_name("maskline")), "refused", *arguments],
                env=operator,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        stored(crew, bool)
    assert refused(own_redis.port) == []


async def test_retry_queues_work_with_the_documented_rights(own_redis: RedisServer):
    give_rights(own_redis.port)
    url = with_login(own_redis.url, WORKER)
    with own_redis.client() as client:
        store = QueueStore(await open_connection(url), client)
        store.keys = Keys("maskline", "workers")
        await store.own()
        await store.commit(Append("h", "s", 0, b"1"), Append("h", "s", 0, b"2"), WriteJob("j", b"record"))
        assert len((await store.take()).queues) == 1
        await store.commit(Again("h", "s", 0, b"1 failed"), Untake("h", "s"))
        await store.commit(Park("h", "s"), dead=[b"letter", b"another"])
        assert (await store.index())["h"].parked == 1
        letter, another = store.letters()
        await store.commit(Unpark("h", "s", letter, b"1"), Requeue(another, b"callback"))
        await store.commit(Pop("h", "s"), GiveUpWaiting("h", "s", 1), DeleteLetter("1-1"), DeleteJob("j"))
        assert await store.index() == {}
        assert await store.run(scripts.take_runs(store.keys, "j", 1_000, 1)) == 0
        store.connection.close()
    assert refused(own_redis.port) == []


async def test_modules_keep_records_with_the_documented_rights(own_redis: RedisServer):
    give_rights(own_redis.port)
    settings = Settings(redis_url=with_login(own_redis.url, WORKER), namespace="maskline", partitions=4)
    store = RedisRecordStore(settings, "test", Keys.call_summary, Keys.call_summary_due, ttl_ms=60_000)
    async with store:
        one = Observation(idempotency_key="s:1:a", entry_id="1-0", event_name="E")
        change = RecordChange(one, 1, emissions=(EmittedEntry("1", b"v", b"e"),), due_in_ms=0)
        assert (await store.change("s", change)).status == "stored"
        assert await store.due(1) == ["s"]
        assert (await store.change("s", RecordChange(None, due_in_ms=-1))).status == "known"
        assert (await store.read("s")).count == 1
        assert (await store.change("s", RecordChange(None, version=0))).status == "changed"
    assert refused(own_redis.port) == []


async def test_worker_of_a_cluster_is_told_what_has_changed_with_the_documented_rights(
    own_redis: RedisServer,
):
    for purposes, told in (((), False), (("Redis Cluster",), True)):
        give_rights(own_redis.port, *purposes)
        connection = await open_connection(with_login(own_redis.url, WORKER))
        assert (await track_reads(connection) == "") is told
        connection.close()


def test_documented_users_may_do_nothing_else(own_redis: RedisServer):
    give_rights(own_redis.port)
    key = "{maskline:1}:callbacks"
    for user, command, refusal in (
        (INGEST, ("XADD", key, "*", "c", "v"), None),
        (INGEST, ("XADD", "{other:1}:callbacks", "*", "c", "v"), "NOPERM"),
        (INGEST, ("XRANGE", key, "-", "+"), "NOPERM"),
        (INGEST, ("DEL", key), "NOPERM"),
        (INGEST, ("XDEL", key, "1-1"), "NOPERM"),
        (INGEST, ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, key), "NOPERM"),
        (INGEST, ("XDEL", "{maskline:refused}:requests", "1-1"), None),
        (WORKER, ("XRANGE", key, "-", "+"), None),
        (WORKER, ("XRANGE", "{other:1}:callbacks", "-", "+"), "NOPERM"),
        (WORKER, ("FLUSHALL",), "NOPERM"),
        (WORKER, ("CONFIG", "SET", "appendonly", "no"), "NOPERM"),
        (WORKER, ("KEYS", "*"), "NOPERM"),
    ):
        with own_redis.client() as client:
            client.execute_command("AUTH", user, PASSWORDS[user])
            if refusal is None:
                client.execute_command(*command)
            else:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
