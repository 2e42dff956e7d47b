"""`maskline replay` of kept callbacks, and the list and stop of jobs. The test plays the workers."""

import time
from urllib.parse import urlencode

import msgspec
import pytest
from console_kit import NUMBER, command
from job_kit import GROUP, change_record, end_job, jobs_in, keys_of, owner, record_in, report_worker

from maskline.console.jobs.records import JobError, create_job, new_job, read_jobs, stop_job
from maskline.console.redis_reader import open_reader
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.errors import ConfigError
from maskline.schemas.jobs import JOB_TTL_MS, JOBS_KEPT_MAX, Selection
from maskline.schemas.keys import partition_of
from maskline.schemas.settings import Settings

PARTITIONS = 64
RECEIVED_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys):
    def run(*argv, code=0, **environ):
        assert command(monkeypatch, redis_server, namespace, "replay", *argv, **environ) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


def keep(client, namespace, session, number, event="SessionRing", *, at_ms=0):
    """A callback in its stream, received so long after RECEIVED_MS; its ID."""
    form = {"SessionUUID": session, "EventName": event, "SequenceNumber": number, "From": NUMBER}
    callback = RawCallback(
        "POST",
        b"",
        "application/x-www-form-urlencoded",
        urlencode(form).encode(),
        RECEIVED_MS + at_ms,
        "MA",
    )
    stream = keys_of(namespace).callbacks(partition_of(session, PARTITIONS))
    return client.xadd(stream, {CALLBACK_FIELD: encode_callback(callback)}).decode()


def handled(client, namespace, *sessions, unfinished=0):
    """The group has read the streams of these sessions, and not finished the last so many entries of each."""
    for session in sessions:
        stream = keys_of(namespace).callbacks(partition_of(session, PARTITIONS))
        client.xgroup_create(stream, GROUP, id="0")
        entries = client.xreadgroup(GROUP, "maskline", {stream: ">"})
        ids = [entry_id for entry_id, _ in dict(entries)[stream.encode()]]
        client.xack(stream, GROUP, *ids[: len(ids) - unfinished])


def plan(run, *argv):
    return msgspec.json.decode(run("--dry-run", "--json", *argv).out)


@pytest.mark.parametrize("argv", [(), ("--event", "SessionRing"), ("--until", "1h"), ("--handler", "fares")])
def test_without_session_or_time_is_wrong_usage(run, argv):
    with pytest.raises(ConfigError, match="replay: nothing is selected: say --session, or --since"):
        run(*argv, "--yes")


def test_dry_run_counts_what_was_handled(run, client, namespace):
    for number in 1, 2, 3:
        keep(client, namespace, "s1", number, at_ms=number)
    keep(client, namespace, "s2", 1, "SessionTimeout", at_ms=10)
    handled(client, namespace, "s1", unfinished=1)
    handled(client, namespace, "s2")
    keep(client, namespace, "s2", 2)  # not read yet
    report_worker(client, namespace, "fares", "crm")
    found = plan(run, "--since", "2023-11-14")
    assert found["callbacks"] == 3
    assert found["sessions"] == 2
    assert found["events"] == {"SessionRing": 2, "SessionTimeout": 1}
    assert found["unfinished"] == 2
    assert found["handlers"] == ["crm", "fares"]
    assert (found["kept_since"], found["first_kept_number"]) == (None, None)

    assert plan(run, "--session", "s1")["callbacks"] == 2
    assert plan(run, "--session", "s1", "--since", "2023-11-14T22:13:20.002Z")["callbacks"] == 1
    assert plan(run, "--since", "2023-11-14", "--until", "2023-11-14T22:13:20.002Z")["callbacks"] == 1
    assert plan(run, "--since", "2023-11-14", "--event", "SessionTimeout")["callbacks"] == 1
    assert plan(run, "--since", "2023-11-14", "--handler", "crm")["handlers"] == ["crm"]
    assert plan(run, "--since", "1m")["callbacks"] == 0
    said = run("--since", "2023-11-14", "--dry-run")
    assert "run 3 callbacks of 2 sessions again, in order" in said.out
    assert "SessionTimeout: 1" in said.out
    assert "2 more are not handled yet" in said.out
    assert "crm, fares" in said.out
    assert "4155550123" not in said.out + said.err
    assert jobs_in(client, namespace) == []


def test_handler_that_no_worker_has_is_wrong_usage(run, client, namespace):
    keep(client, namespace, "s1", 1)
    handled(client, namespace, "s1")
    report_worker(client, namespace, "fares", "crm")
    with pytest.raises(ConfigError, match=r"replay: no worker has a handler 'fare' \(did you mean fares\?\)"):
        run("--session", "s1", "--handler", "fare", "--yes")


def test_what_is_not_kept_any_more_is_said(run, client, namespace):
    for number in 1, 2, 3:
        last = keep(client, namespace, "s1", number)
    handled(client, namespace, "s1")
    assert plan(run, "--since", "2023-11-14")["trimmed_partitions"] == 0
    client.xtrim(keys_of(namespace).callbacks(partition_of("s1", PARTITIONS)), minid=last, approximate=False)
    found = plan(run, "--since", "2023-11-14")
    assert (found["partitions"], found["trimmed_partitions"], found["callbacks"]) == (PARTITIONS, 1, 1)
    assert found["kept_since"] is not None
    said = run("--session", "s1", "--dry-run").out
    assert "in 1 of 1 partitions callbacks from before" in said
    assert "the first number of the session that is kept is 3" in said
    assert plan(run, "--session", "s1", "--since", "2023-11-14")["first_kept_number"] is None


def test_events_are_counted_by_name_within_a_bound(run, client, namespace, monkeypatch):
    monkeypatch.setattr("maskline.console.jobs.kept_callbacks.EVENT_NAMES_MAX", 2)
    monkeypatch.setattr("maskline.console.jobs.kept_callbacks.SESSIONS_HELD_MAX", 1)
    for number, name in enumerate("abcda"):
        keep(client, namespace, "s1", number, f"Odd{name}")
    keep(client, namespace, "s2", 1, "Odda")
    handled(client, namespace, "s1", "s2")
    found = plan(run, "--since", "2023-11-14")
    assert found["events"] == {"Odda": 3, "others": 2, "Oddb": 1}
    assert (found["sessions"], found["sessions_exact"]) == (1, False)
    assert "of at least 1 session again" in run("--since", "2023-11-14", "--dry-run").out


def test_replay_creates_a_job_that_ends_where_the_stream_did(run, redis_server, client, namespace):
    keep(client, namespace, "s1", 1)
    keep(client, namespace, "s1", 2, "SessionTimeout")
    handled(client, namespace, "s1")
    last = keep(client, namespace, "s1", 3)
    with owner(
        redis_server,
        namespace,
        lambda owners, job: end_job(owners, namespace, job, selected=1, succeeded=1),
    ):
        out = run("--session", "s1", "--event", "SessionTimeout", "--yes").out
    (job,) = jobs_in(client, namespace)
    assert out == f"replay {job.id} done: 1 succeeded\n"
    assert (job.kind, job.selection) == ("callbacks", Selection(session="s1", event="SessionTimeout"))
    assert job.partitions == (partition_of("s1", PARTITIONS),)
    assert record_in(client, namespace, job, job.partitions[0]).end == last


def test_streams_are_scanned_by_pages(run, client, namespace, monkeypatch):
    monkeypatch.setattr("maskline.console.jobs.kept_callbacks.PAGE_ENTRIES", 3)
    monkeypatch.setattr("maskline.console.jobs.kept_callbacks.PENDING_PAGE", 2)
    for number in range(10):
        keep(client, namespace, "s1", number)
    handled(client, namespace, "s1", unfinished=5)
    assert plan(run, "--session", "s1")["callbacks"] == 5
    assert plan(run, "--session", "s1")["unfinished"] == 5


# The list, and the records themselves


@pytest.fixture
async def reader(redis_server, namespace):
    reader = await open_reader(Settings(redis_url=redis_server.url, namespace=namespace))
    yield reader
    reader.close()


async def created(reader, *partitions, kind="dead", **changes):
    job = msgspec.structs.replace(new_job(kind, Selection(handler="fares"), partitions, 0.0), **changes)
    assert await create_job(reader, job, dict.fromkeys(partitions, "9-1"))
    return job


async def test_creating_a_job_is_harmless_to_repeat(reader, client, namespace):
    job = await created(reader, 1, 2)
    change_record(client, namespace, job, 1, selected=5)
    assert await create_job(reader, job, {1: "9-1", 2: "9-1"})
    assert record_in(client, namespace, job, 1).selected == 5
    assert await read_jobs(reader) == [job]
    other = msgspec.structs.replace(job, created_ms=job.created_ms + 1)
    assert not await create_job(reader, other, {1: "9-1", 2: "9-1"})
    assert await read_jobs(reader) == [job]


def test_a_job_whose_id_is_taken_gets_another(run, redis_server, client, namespace, monkeypatch):
    keep(client, namespace, "s1", 1)
    handled(client, namespace, "s1")
    ids = iter(["first", "first", "second"])
    monkeypatch.setattr("maskline.console.jobs.records.new_job_id", lambda *_: next(ids))
    for _ in range(2):
        with owner(redis_server, namespace, lambda owners, job: end_job(owners, namespace, job)):
            run("--session", "s1", "--yes")
    assert {job.id for job in jobs_in(client, namespace)} == {"first", "second"}


async def test_jobs_that_ended_make_room(reader, client, namespace):
    now_ms = int(time.time() * 1000)
    jobs = [await created(reader, 1, id=f"job{at}", created_ms=now_ms + at) for at in range(JOBS_KEPT_MAX)]
    with pytest.raises(JobError, match="100 replays and discards are under way"):
        await created(reader, 1, id="more")
    for job in jobs[40:42]:
        end_job(client, namespace, job)
    more = await created(reader, 1, id="more", created_ms=now_ms + JOBS_KEPT_MAX)
    assert await read_jobs(reader) == [*jobs[:40], *jobs[41:], more]


async def test_jobs_that_ended_long_ago_are_forgotten(reader, client, namespace):
    old_ms = int(time.time() * 1000) - JOB_TTL_MS - 1
    running, ended = [await created(reader, 1, id=name, created_ms=old_ms) for name in ("running", "ended")]
    end_job(client, namespace, ended)
    newest = await created(reader, 1)
    assert await read_jobs(reader) == [running, newest]


async def test_stop_marks_the_job_and_tells_the_workers(reader, client, namespace):
    job = await created(reader, 1)
    before = int(client.hget(keys_of(namespace).control, "revision"))
    stopped = await stop_job(reader, job.id)
    assert stopped == msgspec.structs.replace(job, stopped=True)
    assert await read_jobs(reader) == [stopped]
    assert int(client.hget(keys_of(namespace).control, "revision")) == before + 1
    with pytest.raises(JobError, match="there is no job 'bado'"):
        await stop_job(reader, "bado")


async def test_records_are_written_even_if_redis_is_full(own_redis, namespace):
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        reader = await open_reader(Settings(redis_url=own_redis.url, namespace=namespace))
        job = await created(reader, 1, kind="discard")
        await stop_job(reader, job.id)
        reader.close()
        assert [it.stopped for it in jobs_in(client, namespace)] == [True]


def test_list_of_none_says_so(run):
    assert run("list").out == "no replays or discards\n"
    assert msgspec.json.decode(run("list", "--json").out) == []


def test_list_shows_how_far_jobs_are(run, redis_server, client, namespace):
    keep(client, namespace, "s1", 1)
    handled(client, namespace, "s1")
    with owner(
        redis_server,
        namespace,
        lambda owners, job: end_job(owners, namespace, job, selected=3, succeeded=2, failed=1),
    ):
        run("--session", "s1", "--since", "2023-11-14", "--yes", code=1)
    (job,) = jobs_in(client, namespace)
    (row,) = msgspec.json.decode(run("list", "--json").out)
    assert (row["id"], row["kind"], row["state"], row["ended"]) == (job.id, "callbacks", "done", True)
    assert (row["selected"], row["succeeded"], row["failed"], row["partitions_left"]) == (3, 2, 1, 0)
    assert row["selected_by"] == "--session s1 --since 2023-11-14T00:00:00Z"
    shown = run("list").out
    assert job.id in shown
    assert "replay callbacks" in shown
    assert f"replay {job.id} had ended before" in run("stop", job.id).out


def test_stop_says_what_is_under_way(run, redis_server, client, namespace):
    keep(client, namespace, "s1", 1)
    handled(client, namespace, "s1")

    with owner(redis_server, namespace, lambda owners, job: end_job(owners, namespace, job, "stopped")):
        run("--session", "s1", "--yes", code=1)
    (job,) = jobs_in(client, namespace)
    change_record(client, namespace, job, job.partitions[0], state="running", under_way={"fares s1": 2})
    out = run("stop", job.id).out
    assert out == f"replay {job.id} is stopped: workers begin nothing more of it; 2 are under way\n"
    (row,) = msgspec.json.decode(run("list", "--json").out)
    assert (row["state"], row["ended"], row["under_way"]) == ("stopped", False, 2)


def test_stop_of_an_unknown_job_is_an_error(run):
    with pytest.raises(JobError, match="there is no job 'nope'"):
        run("stop", "nope")
    with pytest.raises(ConfigError):
        run("stop")
