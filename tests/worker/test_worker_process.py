"""A worker process and what befalls it: Redis goes and comes back, numbers get lost, entries and settings are wrong."""

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from process_kit import PATIENCE_S, Fleet, WorkerProcess, assert_complete_and_in_order, fleet, load
from servers import RedisServer, wait_until

from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import partition_of
from maskline.schemas.privacy import redact
from maskline.schemas.settings import Settings, load_settings
from maskline.worker.node import WorkerNode

HOUR_MS = 3_600_000


def test_worker_waits_for_a_killed_redis(own_crew: Fleet):
    worker = own_crew.start(RECORD_MS=10)
    events = load(40, 20)
    own_crew.put_all(events)
    own_crew.until_calls(100)
    own_crew.server.kill()
    wait_until(lambda: worker.logged("redis unavailable"), what="the worker to notice")
    own_crew.server.start()
    own_crew.until_drained()
    calls = own_crew.calls()
    assert_complete_and_in_order(calls, events)
    assert not own_crew.dead_letters()
    assert worker.process.poll() is None


def test_worker_recovers_from_lost_connections_and_flushed_scripts(own_crew: Fleet):
    worker = own_crew.start(RECORD_MS=10)
    events = load(40, 12)
    own_crew.put_all(events)
    own_crew.until_calls(100)
    assert own_crew.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 2
    own_crew.until_calls(200)
    own_crew.client.script_flush()
    own_crew.until_drained()
    calls = own_crew.calls()
    assert_complete_and_in_order(calls, events)
    assert not own_crew.dead_letters()
    own_crew.client.script_flush()
    assert worker.terminate() == 0
    assert not own_crew.leases(), "it forgot how to give leases back"


def destroy_groups(crew: Fleet) -> None:
    for partition in range(crew.partitions):
        crew.client.xgroup_destroy(crew.keys.callbacks(partition), "workers")


def delete_streams(crew: Fleet) -> None:
    crew.client.delete(*map(crew.keys.callbacks, range(crew.partitions)))


def flush_all(crew: Fleet) -> None:
    crew.client.flushall()


@pytest.mark.parametrize("harm", [destroy_groups, delete_streams, flush_all])
def test_worker_survives_deleted_data(own_crew: Fleet, harm: Callable[[Fleet], None]):
    own_crew.start()
    before = load(20, 6)
    own_crew.put_all(before)
    own_crew.until_drained()
    harm(own_crew)
    after = load(20, 6, name="t")
    own_crew.put_all(after)
    wait_until(own_crew.drained, within_s=PATIENCE_S, what="the worker to go on")
    assert not own_crew.dead_letters()
    assert_complete_and_in_order(own_crew.calls("t"), after)
    # Where the group began again, the sessions' states know what was handled.
    assert_complete_and_in_order(own_crew.calls("s"), before)
    assert len(own_crew.calls("s")) == len(before)


def test_stream_deleted_under_way_does_not_delay_a_stop(own_crew: Fleet):
    worker = own_crew.start(RECORD_MS=300)
    own_crew.put("s", 1)
    wait_until(lambda: worker.metric("handlers_running") == 1, what="the handler to start")
    delete_streams(own_crew)
    wait_until(lambda: worker.metric("partitions_diverged_total"), what="the commit to be given up")
    assert worker.terminate() == 0


def test_foreign_key_harms_its_partition_alone(crew: Fleet):
    broken = partition_of("s0", crew.partitions)
    crew.client.set(crew.keys.callbacks(broken), "somebody else's")
    worker = crew.start()
    events = [e for e in load(20, 3) if partition_of(e[0], crew.partitions) != broken]
    crew.put_all(events)
    assert_complete_and_in_order(crew.until_calls(len(events)), events)
    assert worker.logged("partition acquire failed")
    crew.client.delete(crew.keys.callbacks(broken))
    crew.put("s0", 1)
    crew.until_calls(1, "s0")


def test_missing_number_is_given_up_after_the_gap_timeout(crew: Fleet):
    crew.start(gap_timeout_ms=700)
    crew.put("s", 1)
    crew.put("s", 4)
    put_at = time.monotonic()
    crew.put("s", 5)
    calls = crew.until_calls(3)
    assert [(c.number, c.order, c.missing) for c in calls] == [
        (1, "in_order", []),
        (4, "after_gap", [2, 3]),
        (5, "in_order", []),
    ]
    assert calls[1].start - put_at >= 0.6
    crew.put("s", 3)
    assert crew.until_calls(4)[-1].order == "late"
    crew.until_drained()


def test_number_further_down_an_old_backlog_is_not_given_up(crew: Fleet):
    start_ms = time.time_ns() // 1_000_000 - HOUR_MS
    ids = iter(f"{start_ms + ms}-0" for ms in range(0, HOUR_MS, 100))
    crew.put("s", 2, entry_id=next(ids))
    for number in range(1, 40):
        crew.put("s", 2 + number if number != 20 else 1, entry_id=next(ids))
    # Longer than the gap timeout, by the stream's own clock: lost, although all of it is read in a moment.
    crew.put("late", 2, entry_id=f"{start_ms + HOUR_MS // 2}-0")
    crew.put("late", 1, entry_id=f"{start_ms + HOUR_MS // 2 + 30_000}-0")
    crew.start(gap_timeout_ms=5_000)
    crew.until_drained()
    calls = crew.calls("s")
    assert [c.number for c in calls] == [1, 2, *range(3, 22), *range(23, 42)]
    assert [c.missing for c in calls if c.order == "after_gap"] == [[22]]
    assert [(c.number, c.order) for c in crew.calls("late")] == [(2, "after_gap"), (1, "late")]


def test_event_that_cannot_be_handled_becomes_a_dead_letter_and_the_others_go_on(crew: Fleet):
    crew.start()
    stream = crew.stream("s")
    crew.client.xadd(stream, {"c": b"\xc1 no msgpack"})
    crew.client.xadd(stream, {"a": "1", "b": "2"})
    crew.put("s", 1)
    crew.put("", 1)
    failing = next(f"fail{i}" for i in range(1000) if crew.stream(f"fail{i}") == stream)
    crew.put(failing, 1)
    crew.put(failing, 2)
    crew.put("s", 2)
    crew.until_drained()
    letters = crew.dead_letters()
    assert sorted(letter.code for letter in letters) == [
        "foreign_entry",
        "foreign_entry",
        "no_session_uuid",
        "retries_exhausted",
        "retries_exhausted",
    ]
    failed = [letter for letter in letters if letter.code == "retries_exhausted"]
    assert [(f.sequence_number, f.attempts, f.handler) for f in failed] == [
        (1, 3, "record"),
        (2, 3, "record"),
    ]
    assert all("as the session's name says" in (letter.traceback or "") for letter in failed)
    assert [(c.number, c.attempt) for c in crew.calls(failing)] == [(n, a) for n in (1, 2) for a in (1, 2, 3)]
    assert_complete_and_in_order(crew.calls("s"), [("s", 1), ("s", 2)])
    # The failing session held up nobody: the other's second event came after, and was done before.
    assert crew.calls("s")[-1].end < crew.calls(failing)[-1].start


@pytest.mark.parametrize("bound", [1, 50])
def test_reading_stops_while_too_many_events_are_unfinished(crew: Fleet, bound: int):
    """However small the bound, and were it less than the partitions: it goes on in the end."""
    worker = crew.start(outstanding_max=bound, RECORD_MS=5 if bound > 1 else 0, concurrency=8)
    events = load(40, 10 if bound > 1 else 2)
    crew.put_all(events)
    greatest = 0.0

    def handled() -> bool:
        nonlocal greatest
        greatest = max(greatest, worker.metric("events_unfinished"))
        return len(crew.calls()) == len(events)

    wait_until(handled, within_s=PATIENCE_S, what="everything to be handled")
    assert_complete_and_in_order(crew.calls(), events)
    one_read = max(bound, 4 * crew.partitions)
    assert greatest <= bound + one_read
    assert bound == 1 or greatest > 0


def test_resources_are_open_for_every_handler(crew: Fleet):
    crew.put_all(load(20, 5))  # before it starts: the first handler runs as soon as it can
    worker = crew.start(RECORD_MS=20)
    crew.until_calls(20)
    assert worker.terminate() == 0
    lines = crew.lines()
    assert [line["what"] for line in lines if line["what"] != "call"] == ["opened", "closed"]
    (opened,) = (line["at"] for line in lines if line["what"] == "opened")
    (closed,) = (line["at"] for line in lines if line["what"] == "closed")
    assert all(opened < call.start <= call.end < closed and call.open for call in crew.calls())


WRONG = {
    "no Redis": ({"redis_url": None}, "MASKLINE_REDIS_URL"),
    "a wrong option": ({"redis_url": "redis+cluster://h?anything=1"}, "anything"),
    "TLS without TLS": ({"redis_url": "redis://h?ssl_ca_certs=/x"}, "ssl_ca_certs"),
    "unknown name": ({"partitons": 8}, "MASKLINE_PARTITONS"),
    "no number": ({"lease_ttl_ms": "soon"}, "MASKLINE_LEASE_TTL_MS"),
    "no such module": ({"handlers": "no.such.module"}, "no.such.module"),
    "no such file": ({"handlers": "no/such/file.py"}, "no/such/file.py"),
}
LAYOUT = {"another layout": ({"partitions": 9}, "MASKLINE_PARTITIONS")}


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_settings_are_refused_by_name(crew: Fleet, wrong: str):
    """Without a process of its own for each; what the operator sees of it is the next test."""
    settings, named = WRONG[wrong]
    with pytest.raises(ConfigError, match=re.escape(named)):
        await WorkerNode(load_settings(crew.environment(**settings))).start()


@pytest.mark.parametrize("wrong", ["unknown name", "no such module", "another layout"])
def test_wrong_settings_stop_the_start_with_one_line(crew: Fleet, wrong: str):
    """Found by the settings themselves, by loading handlers, and in Redis."""
    settings, named = (WRONG | LAYOUT)[wrong]
    if wrong == "another layout":
        crew.client.hset(crew.keys.layout, mapping={"partitions": 8, "version": 1, "token_key": b"k" * 32})
    ended = subprocess.run(
        [sys.executable, "-m", "maskline.worker"],
        env=crew.environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    (line,) = ended.stderr.splitlines()
    assert line.startswith("maskline: ")
    assert named in line
    assert "sesame" not in line
    assert (ended.returncode, ended.stdout) == (2, "")


def readiness(worker: WorkerProcess) -> tuple[int, str]:
    started = worker.logged("worker started")
    assert started is not None
    try:
        with urllib.request.urlopen(f"{started['admin']}/readyz", timeout=60) as response:  # noqa: S310 our own
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_refused_login_is_retried_with_the_password_file_read_again(own_crew: Fleet, tmp_path: Path):
    file = tmp_path / "url"
    file.write_text(own_crew.server.url.replace("//", "//:yesterday@"))
    own_crew.put("s", 1)
    own_crew.client.config_set("requirepass", "today")
    worker = own_crew.start(redis_url=None, redis_url_file=file)
    status, body = readiness(worker)
    assert status == 503
    assert "refuses the log-in: WRONGPASS" in body
    file.write_text(own_crew.server.url.replace("//", "//:today@"))
    own_crew.until_calls(1)
    wait_until(lambda: readiness(worker)[0] == 200, within_s=PATIENCE_S)
    assert "yesterday" not in worker.log
    assert worker.terminate() == 0


def test_events_are_handled_on_an_evicting_server_and_health_reports_it(own_crew: Fleet):
    own_crew.client.config_set("maxmemory", 1 << 30)
    own_crew.client.config_set("maxmemory-policy", "allkeys-lru")
    worker = own_crew.start()
    own_crew.put("s", 1)
    own_crew.until_calls(1)
    status, body = readiness(worker)
    assert status == 503
    assert "callbacks_evicted" in body


def test_worker_id_is_not_redacted_in_logs(monkeypatch: pytest.MonkeyPatch):
    """Were it taken for a phone number, nobody could tell whose leases those are."""
    monkeypatch.setattr("os.getpid", lambda: 4_194_304)
    monkeypatch.setattr("secrets.token_hex", lambda _: "123456")
    worker_id = WorkerNode(Settings()).worker_id
    assert redact(worker_id).endswith("-p4194304-x123456")


def test_zero_processes_is_wrong_usage(crew: Fleet):
    worker = crew.launch("--processes", "0")
    assert worker.process.wait(PATIENCE_S) == 2
    assert "--processes" in worker.log


def test_workers_of_one_command_share_the_partitions(crew: Fleet):
    crew.launch("--processes", "2")
    crew.until_balanced(2)
    events = load(10, 3)
    crew.put_all(events)
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    assert crew.workers[0].terminate() == 0
    assert not crew.leases()


def test_worker_starts_while_redis_is_away(tmp_path: Path, namespace: str):
    server = RedisServer(tmp_path / "valkey").start()
    server.kill()
    try:
        with fleet(server, namespace, tmp_path, partitions=2) as crew:
            crew.start()
            server.start()
            crew.client.close()
            wait_until(lambda: len(crew.leases()) == 2, within_s=PATIENCE_S, what="the leases")
            crew.put("s", 1)
            crew.until_calls(1)
    finally:
        server.stop()


def test_backlog_of_a_full_redis_is_handled(own_crew: Fleet):
    """Only what is committed can be trimmed: a worker that waited for room would wait for ever."""
    first = own_crew.start(RECORD_MS=300)
    events = [("s", 1), ("t", 1), ("s", 2), ("fail", 1)]
    own_crew.put_all(events)
    own_crew.client.config_set("maxmemory", 1)  # before the first handler has ended
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        own_crew.put("u", 1)
    own_crew.until_drained()
    (letter,) = own_crew.dead_letters()
    assert letter.session_uuid == "fail"
    # Leases are kept, given back and taken as well.
    assert first.terminate() == 0
    second = own_crew.start()
    wait_until(lambda: second.metric("partitions_owned") == own_crew.partitions, within_s=PATIENCE_S)
    assert second.logged("lease renewal failed") is None
    own_crew.client.config_set("maxmemory", 0)
    own_crew.put("u", 1)
    own_crew.until_calls(1, "u")
    assert_complete_and_in_order(
        [c for c in own_crew.calls() if c.session != "fail"], [*events[:3], ("u", 1)]
    )
    assert len(own_crew.calls("s")) == 2


def test_unreadable_partition_delays_no_other(crew: Fleet):
    worker = crew.start()
    crew.until_balanced(1)
    broken = crew.stream("broken")
    crew.client.delete(broken)
    crew.client.set(broken, "what is this")
    wait_until(lambda: worker.logged("partition read failed"), within_s=PATIENCE_S)
    events = [(f"s{session}", 1) for session in range(40) if crew.stream(f"s{session}") != broken]
    crew.put_all(events)
    crew.until_calls(len(events))
    crew.client.delete(broken)
    crew.put("broken", 1)
    crew.until_calls(1, "broken")
    assert_complete_and_in_order(crew.calls(), [*events, ("broken", 1)])


def test_server_clock_that_leaps_ahead_and_back_delays_no_gap(crew: Fleet):
    """The stream's IDs stay in the future until the clock has caught up: gaps must not wait for that."""
    worker = crew.start(gap_timeout_ms=1_000)
    crew.until_balanced(1)
    hour_ms = 3_600_000
    leapt = crew.put("leap", 1, entry_id=f"{time.time_ns() // 1_000_000 + hour_ms}-0")
    crew.until_calls(1, "leap")
    crew.client.xtrim(crew.stream("leap"), maxlen=0)
    assert crew.put("leap", 3) == f"{leapt.partition('-')[0]}-1", "the ID stands still"
    wait_until(lambda: worker.metric("events_held") == 1, what="the event to wait")
    put_at = time.monotonic()
    held, given_up = crew.until_calls(2, "leap")
    assert (held.order, given_up.order, given_up.missing) == ("in_order", "after_gap", [2])
    assert 0.5 < given_up.start - put_at < 3
    crew.put("leap", 5)
    crew.put("leap", 4)
    assert [call.order for call in crew.until_calls(4, "leap")][2:] == ["in_order", "in_order"]
