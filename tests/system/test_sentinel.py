"""Workers behind Sentinels: a failover under load loses nothing that a replica had, and keeps the order."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order, load
from sentinel_kit import SentinelServers
from servers import wait_until
from system_kit import Traffic, ingest

pytestmark = pytest.mark.server


class SentinelFleet(Fleet):
    """The same fleet; its own client goes to the primary of the moment."""

    def __init__(self, sentinels: SentinelServers, namespace: str, directory: Path) -> None:
        super().__init__(sentinels.primary(), namespace, directory)
        self.sentinels = sentinels

    def environment(self, **settings: object) -> dict[str, str]:
        return super().environment(redis_url=self.sentinels.url, **settings)

    def follow(self) -> None:
        self.client.close()
        self.client = self.sentinels.primary().client()


@pytest.fixture
def crew(tmp_path: Path, namespace: str) -> Iterator[SentinelFleet]:
    sentinels = SentinelServers(tmp_path / "sentinel").start()
    try:
        it = SentinelFleet(sentinels, namespace, tmp_path)
        try:
            yield it
        finally:
            it.close()
    finally:
        sentinels.stop()


def test_sentinel_failover_under_load_keeps_the_order(crew: SentinelFleet):
    crew.start(RECORD_MS=5)
    crew.start(RECORD_MS=5)
    crew.until_balanced(2)
    events = load(60, 20)
    crew.put_all(events[:600])
    assert crew.client.wait(2, 10_000) == 2  # whichever of them is elected
    crew.sentinels.kill_primary()
    crew.sentinels.until_failed_over()
    crew.follow()
    crew.put_all(events[600:])
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    assert not crew.dead_letters()
    # The old primary comes back as a replica, and nobody falls for it.
    crew.sentinels.restart_killed()
    crew.put("after", 1)
    (call,) = crew.until_calls(1, "after")
    assert call.order == "in_order"


def test_worker_starts_without_a_primary(crew: SentinelFleet):
    crew.sentinels.kill_primary()
    worker = crew.start()
    crew.sentinels.until_failed_over()
    crew.follow()
    wait_until(lambda: worker.metric("partitions_owned") == crew.partitions, within_s=PATIENCE_S)
    crew.put("s", 1)
    crew.until_calls(1)


def test_callbacks_answered_around_a_paused_primary_are_handled(crew: SentinelFleet):
    crew.start()
    crew.start()
    with ingest(crew, durability="replicas:1") as url:
        with Traffic(url) as traffic:
            traffic.until(200)
            crew.sentinels.pause_past_a_failover()
            traffic.until(200)
        traffic.until_handled(crew)
    crew.follow()
    assert set(traffic.answers) == {200}
    crew.until_drained()
    assert not crew.dead_letters()


def test_callbacks_answered_through_a_failover_are_handled(crew: SentinelFleet):
    crew.start()
    crew.start()
    with ingest(crew, durability="replicas:1") as url:
        with Traffic(url) as traffic:
            traffic.until(200)
            crew.sentinels.kill_primary()
            crew.sentinels.until_failed_over()
            traffic.until(200)
            crew.sentinels.restart_killed()
            traffic.until(200)
        traffic.until_handled(crew)
    crew.follow()
    assert set(traffic.answers) == {200}
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), traffic.taken)
    assert not crew.dead_letters()
