"""Partitions change hands: by balance, by a stop, by a kill, by a pause past the lease. Real processes and signals."""

import signal
import time
from pathlib import Path

import pytest
from process_kit import (
    LEASE_TTL_MS,
    PATIENCE_S,
    Fleet,
    assert_complete_and_in_order,
    assert_tokens_grow,
    by_session,
    fleet,
    load,
)
from servers import RedisServer, wait_until

from maskline.schemas.keys import partition_of


def test_partitions_are_balanced_as_workers_join_and_leave(crew: Fleet):
    first, second = crew.launch(), crew.launch()
    first.until_started()
    second.until_started()
    crew.until_balanced(2)
    crew.start()
    crew.until_balanced(3)
    assert crew.shares() == [2, 3, 3]
    held = {number: owner for number, owner in crew.leases().items() if owner[1] != first.worker_id}
    assert first.terminate() == 0
    assert first.worker_id not in {worker for _, worker in crew.leases().values()}
    crew.until_balanced(2)
    # Nothing moved but what was free.
    assert held.items() <= crew.leases().items()


def test_stopping_worker_releases_its_leases_at_once(crew: Fleet):
    leaver, heir = (crew.launch(lease_ttl_ms=60_000) for _ in range(2))
    leaver.until_started()
    crew.put_all(load(20, 5))
    crew.until_drained()
    assert leaver.terminate() == 0
    assert leaver.worker_id not in {worker for _, worker in crew.leases().values()}
    assert crew.client.zscore(crew.keys.workers, leaver.worker_id) is None
    heir.until_started()


def test_stopping_worker_no_longer_counts_as_live_while_its_last_handler_runs(crew: Fleet):
    """Its share is free for others while its last handler is still at work."""
    leaver = crew.start(lease_ttl_ms=3_000, RECORD_MS=300)
    crew.start(lease_ttl_ms=3_000, RECORD_MS=300)
    crew.until_balanced(2)
    held = [number for number, (_, worker) in crew.leases().items() if worker == leaver.worker_id]
    session = next(name for i in range(1000) if partition_of(name := f"slow{i}", 8) == held[0])
    crew.put(session, 1)
    wait_until(lambda: leaver.metric("handlers_running") == 1, what="the handler to start")
    leaver.signal(signal.SIGTERM)
    wait_until(
        lambda: leaver.worker_id.encode() not in crew.client.zrange(crew.keys.workers, 0, -1),
        what="the leaver to sign off",
    )
    assert not crew.calls()
    assert leaver.process.wait(PATIENCE_S) == 0
    assert [call.outcome for call in crew.calls()] == ["done"]


def test_slow_handler_delays_no_other_session_while_its_partition_is_handed_over(
    redis_server: RedisServer, namespace: str, tmp_path: Path
):
    until = tmp_path / "until"
    with fleet(redis_server, namespace, tmp_path, partitions=2) as crew:
        first = crew.start(HELD_UNTIL_FILE=str(until))
        crew.until_balanced(1)
        moving = [name for i in range(200) if partition_of(name := f"s{i}", 2) == 1]
        held = next(name for i in range(200) if partition_of(name := f"held{i}", 2) == 1)
        crew.put(held, 1)
        wait_until(lambda: first.metric("handlers_running") == 1, what="the handler to start")
        crew.start(HELD_UNTIL_FILE=str(until))
        began, handled = time.monotonic(), 0
        # Until the first worker has surely been told that there is another one, and wants to give the partition back.
        while handled < 5 or time.monotonic() - began < 2 * LEASE_TTL_MS / 1000:
            crew.put(moving[handled % len(moving)], 1 + handled // len(moving))
            handled += 1
            wait_until(
                lambda: len(crew.calls("s")) == handled,  # noqa: B023 - asked at once
                within_s=PATIENCE_S, what="its event to be handled",
            )  # fmt: skip
        assert not crew.calls(held)
        until.touch()
        crew.until_balanced(2)
        crew.until_drained()
        assert [call.outcome for call in crew.calls(held)] == ["done"]
        assert len(crew.calls()) == handled + 1


def test_partitions_of_a_killed_worker_are_taken_over(crew: Fleet):
    victim, heir = crew.launch(RECORD_MS=20), crew.launch(RECORD_MS=20)
    victim.until_started()
    heir.until_started()
    crew.until_balanced(2)
    events = load(80, 20)
    crew.put_all(events)
    wait_until(lambda: sum(c.pid == victim.pid for c in crew.calls()) > 200, within_s=PATIENCE_S)
    lost = [number for number, (_, worker) in crew.leases().items() if worker == victim.worker_id]
    victim.kill()
    killed_at = time.monotonic()
    open_then = {number: crew.uncommitted(number) for number in lost}
    assert len(lost) == 4
    assert sum(c.pid == victim.pid for c in crew.calls()) < 40 * 20, "it was killed too late to show anything"

    wait_until(
        lambda: all(crew.leases().get(number, (0, ""))[1] == heir.worker_id for number in lost),
        within_s=PATIENCE_S,
    )
    taken_over_s = time.monotonic() - killed_at
    crew.until_drained()
    calls = crew.calls()
    assert_complete_and_in_order(calls, events)
    assert_tokens_grow(calls, crew.partitions)
    assert not crew.dead_letters()
    for ones in by_session(calls).values():
        numbers = [call.number for call in ones]
        for call in ones:
            if numbers.count(call.number) > 1:
                assert open_then[partition_of(call.session, crew.partitions)](call.entry_id)
    assert taken_over_s < 2 * LEASE_TTL_MS / 1000


@pytest.mark.parametrize("twice", [False, True], ids=["one-handler", "two-handlers"])
def test_worker_paused_past_its_lease_is_fenced_off(crew: Fleet, twice: bool):
    options = {"RECORD_MS": 30} | ({"RECORD_TWICE": 1} if twice else {})
    sleeper, heir = crew.launch(**options), crew.launch(**options)
    sleeper.until_started()
    heir.until_started()
    crew.until_balanced(2)
    events = load(60, 12)
    crew.put_all(events)
    wait_until(lambda: sum(c.pid == sleeper.pid for c in crew.calls()) > 100, within_s=PATIENCE_S)
    sleeper.pause()
    lost = [number for number, (_, worker) in crew.leases().items() if worker == sleeper.worker_id]
    wait_until(
        lambda: all(crew.leases().get(number, (0, ""))[1] == heir.worker_id for number in lost),
        within_s=PATIENCE_S,
    )
    # More for it to lay hands on, once it is back.
    more = load(40, 3, name="m")
    crew.put_all(more)
    before = {number: crew.leases()[number] for number in lost}
    woken_at = time.monotonic()
    sleeper.signal(signal.SIGCONT)
    crew.until_drained()
    crew.until_balanced(2)
    wait_until(lambda: crew.drained() and sleeper.logged("lease lost"), within_s=PATIENCE_S)

    calls = crew.calls()
    handlers = ["record", "again"] if twice else ["record"]
    # What it was in the middle of comes to an end, cancelled or not, beside the new owner: only the token can tell.
    astride = [c for c in calls if c.pid == sleeper.pid and c.start < woken_at < c.end]
    assert astride
    for handler in handlers:
        own = [c for c in calls if c.handler == handler and c not in astride]
        assert_complete_and_in_order(own, [*events, *more])
    keys = {(c.session, c.number): c.key for c in calls}
    assert all(c.key == keys[c.session, c.number] for c in calls)
    late = [c for c in calls if c.pid == sleeper.pid and c.start > woken_at]
    fresh = {number: token for number, (token, _) in before.items()}
    assert all(
        c.token > fresh[partition_of(c.session, 8)] for c in late if partition_of(c.session, 8) in fresh
    )
    assert not crew.dead_letters()
    assert_tokens_grow([c for c in calls if c.start < woken_at or c.pid != sleeper.pid], crew.partitions)
    # It is back with leases of its own, and at work.
    tokens = {number: token for number, (token, owner) in crew.leases().items() if owner == sleeper.worker_id}
    assert len(tokens) == 4
    session = next(name for i in range(1000) if partition_of(name := f"after{i}", 8) in tokens)
    crew.put(session, 1)
    (call, *_) = crew.until_calls(len(handlers), session)
    assert call.pid == sleeper.pid
    assert call.token == tokens[partition_of(session, 8)]


def test_what_ends_after_the_lease_was_lost_changes_nothing(
    redis_server: RedisServer, namespace: str, tmp_path: Path
):
    """Not even what an owner did first, where the next one has not committed anything either.

    Its commit is refused (`test_committer`), unless it learns first from a renewal that the lease is lost.
    """
    until_first, until_next = tmp_path / "until-first", tmp_path / "until-next"
    with fleet(redis_server, namespace, tmp_path, partitions=1) as crew:
        sleeper = crew.start(HELD_UNTIL_FILE=str(until_first))
        entry_id = crew.put("held", 1)
        wait_until(lambda: sleeper.metric("handlers_running") == 1, what="the handler to start")
        sleeper.pause()
        heir = crew.start(HELD_UNTIL_FILE=str(until_next))
        wait_until(lambda: heir.metric("handlers_running") == 1, within_s=PATIENCE_S, what="the takeover")
        until_first.touch()
        sleeper.signal(signal.SIGCONT)
        wait_until(lambda: sleeper.logged("lease lost"), within_s=PATIENCE_S, what="the loss to be seen")
        assert crew.uncommitted(0)(entry_id)
        assert not crew.client.exists(crew.keys.session(0, "held"))
        until_next.touch()
        crew.until_drained()
        assert [c.pid for c in crew.calls()] == [sleeper.pid, heir.pid]


def test_stop_under_load_loses_and_repeats_no_event(crew: Fleet):
    leaver, heir = crew.launch(RECORD_MS=50), crew.launch(RECORD_MS=50)
    leaver.until_started()
    heir.until_started()
    crew.until_balanced(2)
    events = load(60, 10)
    crew.put_all(events)
    wait_until(lambda: sum(c.pid == leaver.pid for c in crew.calls()) > 60, within_s=PATIENCE_S)
    assert leaver.terminate() == 0
    assert leaver.worker_id not in {worker for _, worker in crew.leases().values()}
    crew.until_drained()
    calls = crew.calls()
    assert_complete_and_in_order(calls, events)
    assert_tokens_grow(calls, crew.partitions)
    assert len(calls) == len(events), "an event was handled twice"
    handed_on = {c.session for c in calls if c.pid == leaver.pid} & {
        c.session for c in calls if c.pid == heir.pid
    }
    assert handed_on, "it was stopped too late to show anything"
    assert {c.outcome for c in calls} == {"done"}


def test_redis_restarted_from_an_older_snapshot_loses_no_held_event(tmp_path: Path, namespace: str):
    """What an owner believes committed may be gone after a restart or failover: it must start from what is there."""
    server = RedisServer(tmp_path / "valkey", options=("--appendonly", "no")).start()
    try:
        with fleet(server, namespace, tmp_path, partitions=1) as crew:
            first = crew.start(gap_timeout_ms=3_600_000)
            crew.put("waiting", 2)
            wait_until(lambda: first.metric("events_held") == 1, what="the event to be held")
            crew.client.save()
            crew.put(
                "other", 1
            )  # its commit says that `waiting` is pending, and is the last thing Redis forgets
            crew.until_calls(1)
            wait_until(lambda: crew.group(0)["pending"] == 1, what="the commit")
            server.kill()
            server.start()
            crew.put("another", 1)
            crew.until_calls(1, "another")
            wait_until(lambda: crew.group(0)["lag"] == 0, what="the commit after the restart")
            first.kill()
            crew.start(gap_timeout_ms=3_600_000)
            crew.put("waiting", 1)
            assert [call.number for call in crew.until_calls(2, "waiting")] == [1, 2]
    finally:
        server.stop()


def test_undecided_event_outlives_its_owner(redis_server: RedisServer, namespace: str, tmp_path: Path):
    """It waits for the opening of a second call, in the pending list meanwhile. Nothing is left of it there."""
    with fleet(redis_server, namespace, tmp_path, partitions=1) as crew:
        first = crew.start(gap_timeout_ms=3_600_000, lease_ttl_ms=500)
        for number in (1, 2):
            crew.put("s", number, EventTimestamp=f"2026-01-05 09:00:0{number}")
        crew.put("s", 2, EventTimestamp="2026-01-05 09:07:05")
        wait_until(lambda: first.metric("events_held") == 1, what="the second 2 to wait")
        crew.put("other", 1)  # its commit says what waits
        wait_until(lambda: crew.group(0)["pending"] == 1 and crew.group(0)["lag"] == 0, what="the commit")
        first.kill()
        heir = crew.start(gap_timeout_ms=3_600_000, lease_ttl_ms=500)
        wait_until(lambda: heir.metric("events_held") == 1, what="the heir to have it")
        crew.put("s", 1, EventTimestamp="2026-01-05 09:07:01")
        calls = crew.until_calls(4, "s")
        assert [(call.number, call.order, call.run) for call in calls[2:]] == [
            *((1, "in_order", 1), (2, "in_order", 1)),
        ]
        crew.until_drained()
        assert crew.group(0)["pending"] == 0
