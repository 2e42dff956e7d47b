"""The operator's commands with the rights that docs/operating.md gives them, and no others: nothing is refused."""

import asyncio
import re
from pathlib import Path

import pytest
from console_kit import command, put_letter, settings_for
from job_kit import end_job, keys_of, owner, report_worker
from servers import plain_reply
from test_replay import handled, keep

from maskline.console.redis_reader import open_reader
from maskline.console.trigger.facts import read_facts
from maskline.console.trigger.snapshot import read_snapshot
from maskline.schemas.keys import partition_of
from maskline.worker.ordering.state import HandlerRetries, SessionState, encode_state

DOCS = Path(__file__).parents[2] / "docs" / "operating.md"
NAMESPACE = "maskline"


async def follow_a_callback(server):
    """As `maskline trigger` does."""
    reader = await open_reader(settings_for(server, NAMESPACE, lease_ttl_ms=60_000))
    snapshot = await read_snapshot(reader, "s1")
    facts = await read_facts(reader, snapshot, "1-1", "SessionTimeout")
    assert facts.takers == ("fares",)
    reader.close()


class WithLogin:
    """A server, as the operator's user sees it."""

    def __init__(self, server):
        self.url = server.url.replace("://", "://maskline-operator:OPERATOR_PASSWORD@", 1)


@pytest.mark.storage
def test_commands_work_with_the_documented_rights(own_redis, monkeypatch):
    (user,) = re.findall(r"^ACL SETUSER maskline-operator .*", DOCS.read_text(), re.MULTILINE)
    assert plain_reply(own_redis.port, *user.split()) == b"OK"
    with own_redis.client() as client:
        keep(client, NAMESPACE, "s1", 1)
        handled(client, NAMESPACE, "s1")
        letter = put_letter(own_redis, NAMESPACE, 1, handler="fares", session_uuid="s1", parked=True)
        client.rpush(keys_of(NAMESPACE).retry_queue(1, "fares", "s1"), b"item")
        report_worker(client, NAMESPACE, "fares")
        state = SessionState(retries={"fares": HandlerRetries(1, parked=True)})
        client.set(keys_of(NAMESPACE).session(partition_of("s1", 64), "s1"), encode_state(state))

    def run(*argv, code=0):
        assert command(monkeypatch, WithLogin(own_redis), NAMESPACE, *argv) == code

    run("status")
    run("pause", "fares")
    run("resume", "fares")
    run("refused", "list")
    run("pause", "fares", "--yes")
    run("resume", "fares", "--yes")
    for argv in ("list",), ("list", "--limit", "1"), ("list", letter), ("groups",), ("show", letter):
        run("dead", *argv)
    for argv in ("dead", "replay", "--all"), ("dead", "discard", letter), ("replay", "--since", "2023-11-14"):
        with owner(own_redis, NAMESPACE, lambda owners, job: end_job(owners, NAMESPACE, job)):
            run(*argv, "--yes")
    asyncio.run(follow_a_callback(WithLogin(own_redis)))
    run("replay", "list")
    run("session", "s1")
    with own_redis.client() as client:
        (job_id, *_) = client.hkeys(keys_of(NAMESPACE).jobs)
    run("replay", "stop", job_id.decode())
    assert plain_reply(own_redis.port, "ACL", "LOG", 100) == []
