"""Retention in real workers: a soak of many times what is kept, and groups that do not keep up."""

import time
from pathlib import Path

import pytest
from example_counts import LONG
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order, fleet, load
from servers import RedisServer, wait_until

from maskline.worker.partitions.retention import PAUSE_MAX_S, ROUND_S, calm_pause_s

KEEP = 500
SOAK = 18_000 if LONG else 8_000
BATCH_SESSIONS = 20
BATCH_EVENTS = 50
HOUR_MS = 3_600_000


def retained(crew: Fleet) -> int:
    return sum(crew.client.xlen(crew.keys.callbacks(number)) for number in range(crew.partitions))


def used_memory(crew: Fleet) -> int:
    return int(crew.client.info("memory")["used_memory"])


def test_stream_stays_within_bounds_for_many_times_the_retention(tmp_path: Path, namespace: str):
    server = RedisServer(tmp_path / "valkey").start()
    try:
        with fleet(server, namespace, tmp_path) as crew:
            worker = crew.start(retention_max_entries=KEEP, session_ttl_s=1)
            memory: list[int] = []
            for batch in range(SOAK // (BATCH_SESSIONS * BATCH_EVENTS)):
                crew.put_all(load(BATCH_SESSIONS, BATCH_EVENTS, name=f"b{batch}-", window=2))
                crew.until_drained()
                wait_until(
                    lambda: retained(crew) <= KEEP, within_s=PATIENCE_S, what="the streams to be trimmed"
                )
                memory.append(used_memory(crew))
            third = len(memory) // 3
            assert max(memory[-third:]) < 1.5 * max(memory[:third])
            assert len(crew.calls()) == SOAK
            assert {call.order for call in crew.calls()} == {"in_order"}
            assert worker.metric("entries_trimmed_total") >= SOAK - KEEP
            assert worker.metric("entries_retained") <= KEEP
            assert retained(crew) > 0, "what is handled stays replayable as far as it may"
            assert not crew.dead_letters()
    finally:
        server.stop()


def test_handled_callbacks_are_trimmed_after_retention(crew: Fleet):
    start_ms = time.time_ns() // 1_000_000 - HOUR_MS
    for number in range(1, 51):
        crew.put("s", number, entry_id=f"{start_ms + number}-0")
    crew.put("s", 51)
    crew.start(retention_s=600, retention_max_entries=1_000 * crew.partitions)
    crew.until_drained()
    wait_until(lambda: retained(crew) == 1, within_s=PATIENCE_S, what="the old ones to go")
    assert_complete_and_in_order(crew.calls(), [("s", number) for number in range(1, 52)])
    assert crew.drained(), "trimming has changed what the group knows"


def test_handled_callbacks_are_trimmed_at_once_without_retention(crew: Fleet):
    crew.start(retention_s=0)
    events = load(20, 5)
    crew.put_all(events)
    crew.until_drained()
    wait_until(lambda: retained(crew) == 0, within_s=PATIENCE_S, what="everything to go")
    assert_complete_and_in_order(crew.calls(), events)
    crew.put("s0", 6)
    assert [call.order for call in crew.until_calls(101, "s")][-1] == "in_order"


def test_held_callbacks_are_kept(crew: Fleet):
    worker = crew.start(retention_s=0, retention_max_entries=0, gap_timeout_ms=HOUR_MS)
    crew.put_all([("s", 1), ("s", 3), *(("s", number) for number in range(4, 10))])
    wait_until(lambda: worker.metric("events_held") == 7, what="the others to wait")
    wait_until(
        lambda: worker.metric("entries_trimmed_total") == 1, within_s=PATIENCE_S, what="the first to go"
    )
    assert retained(crew) == 7
    worker.kill()
    crew.start(retention_s=0, retention_max_entries=0, gap_timeout_ms=HOUR_MS)
    crew.put("s", 2)
    calls = crew.until_calls(9, "s")
    assert [(call.number, call.order) for call in calls] == [(number, "in_order") for number in range(1, 10)]
    wait_until(lambda: retained(crew) == 0, within_s=PATIENCE_S, what="all to go")


def test_group_that_lags_keeps_its_unhandled_callbacks_and_is_warned_of(crew: Fleet):
    start_ms = time.time_ns() // 1_000_000 - HOUR_MS
    stream = crew.stream("s")
    for number in range(1, 101):
        crew.put("s", number, entry_id=f"{start_ms + number}-0")
    crew.client.xgroup_create(stream, "audit", f"{start_ms + 30}-0")
    worker = crew.start(retention_s=60)
    crew.until_drained()
    wait_until(lambda: retained(crew) == 70, within_s=PATIENCE_S, what="what both have handled to go")
    warning = wait_until(
        lambda: worker.logged("retention held back"),
        within_s=PATIENCE_S,
        what="the warning",
    )
    assert warning["group"] == "audit"
    assert warning["outstayed_s"] > 3_000
    assert worker.metric("retention_held_back_seconds", group="audit") > 3_000
    assert worker.metric("retention_held_back_seconds", group="workers") == 0
    assert retained(crew) == 70
    crew.client.xgroup_destroy(stream, "audit")
    wait_until(lambda: retained(crew) == 0, within_s=PATIENCE_S, what="the rest to go")
    wait_until(
        lambda: worker.metric("retention_held_back_seconds", group="audit") == 0,
        within_s=PATIENCE_S,
        what="the metric to fall",
    )
    assert worker.log.count("retention held back") == 1


def test_every_group_handles_a_callback_before_it_is_trimmed(crew: Fleet):
    """Two groups at different speeds: the slow one misses nothing."""
    events = load(10, 10)
    crew.put_all(events)
    crew.start(retention_s=0)
    crew.until_drained()
    other = crew.directory / "audit.jsonl"
    assert retained(crew) == 100 or crew.client.xinfo_groups(crew.stream("s0"))
    crew.put_all([("t", 1)])
    crew.client.xgroup_create(crew.stream("t"), "audit", "0")
    crew.put_all([("t", number) for number in range(2, 40)])
    crew.start(group="audit", RECORD_FILE=other, RECORD_MS=20, retention_s=0)
    wait_until(
        lambda: other.exists() and other.read_text().count('"session": "t"') >= 38,
        within_s=PATIENCE_S,
        what="the slow group to handle its own",
    )
    wait_until(lambda: retained(crew) == 0, within_s=PATIENCE_S, what="everything to go")
    assert len(crew.calls("t")) == 39


def test_partitions_with_little_to_trim_are_looked_at_less_often(crew: Fleet):
    crew.start(retention_max_entries=100 * 1_000 * crew.partitions)
    crew.until_balanced(1)

    def looks() -> int:
        return int(crew.client.info("commandstats").get("cmdstat_xinfo|groups", {"calls": 0})["calls"])

    crew.put_all(load(20, 5))
    crew.until_drained()
    wait_until(lambda: looks() >= crew.partitions, within_s=PATIENCE_S, what="a look at all partitions")
    before, began = looks(), time.monotonic()
    wait_until(lambda: looks() >= before + 2 * crew.partitions, within_s=PATIENCE_S, what="two more")
    assert time.monotonic() - began >= PAUSE_MAX_S


@pytest.mark.parametrize(
    ("retention_ms", "keep", "pause_s"),
    [
        (HOUR_MS, 15_625, PAUSE_MAX_S),
        (30_000, 15_625, 3.0),
        (HOUR_MS, 2_000, 2.0),
        (HOUR_MS, 62, ROUND_S),
        (0, 15_625, ROUND_S),
    ],
)
def test_pause_is_short_where_little_may_stay(retention_ms: int, keep: int, pause_s: float):
    assert calm_pause_s(retention_ms, keep) == pause_s
