"""`maskline replay --from-archive` with real workers, which do not see the archive."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order
from servers import wait_until

from maskline.schemas.jobs import JobTotals, decode_job, decode_partition_job, sum_up
from maskline.schemas.replay_feed import FEED_TTL_MS, PART_FIELD

sys.path.insert(0, str(Path(__file__).parents[1] / "handlers"))

from archive_kit import session_callbacks, write_archive

SESSIONS = 40
KILLS = int(os.environ.get("ARCHIVE_KILLS", "1"))
"""Workers that are killed while a replay runs; each is a replay of its own."""
ORDER = (2, 1, 3, 5, 4, 6)

pytestmark = pytest.mark.server


def replay(crew: Fleet, *argv: str, code: int = 0, **environ):
    """What the command prints."""
    command = [str(Path(sys.executable).with_name("maskline")), "replay", *argv]
    environment = crew.environment(TMPDIR=crew.directory) | environ
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert "4155550123" not in done.stdout + done.stderr
    return done


def command_of(archive: Path) -> list[str]:
    return [
        str(Path(sys.executable).with_name("maskline")),
        "replay",
        "--from-archive",
        str(archive),
        "--yes",
    ]


def totals(crew: Fleet) -> JobTotals:
    """Those of the only job."""
    records = [crew.client.hvals(crew.keys.partition_jobs(number)) for number in range(crew.partitions)]
    return sum_up(decode_partition_job(value) for values in records for value in values)


def fed(crew: Fleet) -> int:
    """Sessions in the feeds."""
    keys = crew.client.keys(f"{{{crew.namespace}:*}}:feed:*")
    return sum(PART_FIELD in fields for key in keys for _, fields in crew.client.xrange(key))


def archive_of(crew: Fleet, *, repeat: int = 0, padding: int = 0) -> Path:
    """An archive with SESSIONS sessions, interleaved; the first `repeat` callbacks are in two segments."""
    sessions = [session_callbacks(f"old{number}", *ORDER, padding=padding) for number in range(SESSIONS)]
    kept = [one for some in zip(*sessions, strict=True) for one in some]
    write_archive(crew.directory / "archive", [*kept, *kept[:repeat]])
    return crew.directory / "archive"


def test_an_archive_runs_again_in_order_each_callback_once(crew: Fleet):
    archive = archive_of(crew, repeat=30)
    (archive / "2020" / "01" / "01").mkdir(parents=True)
    (archive / "2020" / "01" / "01" / "20200101T000000000Z-20200101T000000000Z-x-000001.segment").write_text(
        "no"
    )
    crew.start()
    done = replay(crew, "--from-archive", str(archive), "--yes", "--json", code=1)  # as a file is damaged
    report = json.loads(done.stdout)
    assert (report["kind"], report["state"], report["selected"]) == ("archive", "done", SESSIONS * len(ORDER))
    assert report["succeeded"] == SESSIONS * len(ORDER)
    for number in range(SESSIONS):
        calls = crew.calls(f"old{number}")
        calls = [call for call in calls if call.session == f"old{number}"]
        assert [(call.number, call.order) for call in calls] == [(n, "in_order") for n in range(1, 7)]
    assert not crew.client.keys(f"{{{crew.namespace}:*}}:feed:*")

    report = json.loads(
        replay(crew, "--from-archive", str(archive), "--session", "old7", "--yes", "--json", code=1).stdout
    )
    assert report["succeeded"] == len(ORDER)
    first, again = (crew.calls("old7")[: len(ORDER)], crew.calls("old7")[len(ORDER) :])
    assert [call.key for call in first] == [call.key for call in again]
    assert list(crew.directory.glob("maskline-replay-*")) == []


def test_workers_that_are_killed_meanwhile_leave_nothing_out(crew: Fleet):
    archive = archive_of(crew)
    rng = random.Random(KILLS)
    workers = [crew.start(), *(crew.start() for _ in range(KILLS > 1))]
    for _ in range(KILLS):
        calls = len(crew.calls())
        with subprocess.Popen(
            [*command_of(archive), "--json"],
            env=crew.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            crew.until_calls(calls + rng.randrange(1, SESSIONS * len(ORDER) // 2))
            victim = rng.randrange(len(workers))
            workers[victim].kill()
            workers[victim] = crew.launch()
            out, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert json.loads(out)["succeeded"] == SESSIONS * len(ORDER)
        done = [call for call in crew.calls()[calls:] if call.outcome == "done"]
        events = [(f"old{number}", place) for number in range(SESSIONS) for place in range(1, 7)]
        assert_complete_and_in_order(done, events)


def test_a_command_that_is_killed_ends_its_job_once_the_feeds_expire(crew: Fleet):
    archive = archive_of(crew, padding=20_000)
    with subprocess.Popen(
        command_of(archive), env=crew.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: fed(crew) >= 7, within_s=PATIENCE_S, what="the feeds")
        process.kill()
    feeds = crew.client.keys(f"{{{crew.namespace}:*}}:feed:*")
    assert all(0 < crew.client.pttl(feed) <= FEED_TTL_MS for feed in feeds)
    crew.start()
    crew.until_calls(7)  # what it has fed is run
    for feed in feeds:
        crew.client.pexpire(feed, 1)
    wait_until(lambda: totals(crew).ended, within_s=PATIENCE_S, what="the job to end")
    assert totals(crew).state == "stopped"
    assert totals(crew).selected == totals(crew).succeeded == len(crew.calls())


def test_a_server_that_is_full_stops_the_replay_with_one_line(own_crew: Fleet):
    archive = archive_of(own_crew, padding=20_000)
    own_crew.client.config_set("maxmemory-policy", "noeviction")
    own_crew.client.config_set("maxmemory", int(own_crew.client.info("memory")["used_memory"]) + (1 << 20))
    said = replay(own_crew, "--from-archive", str(archive), "--yes", code=1).stderr
    assert "Redis refuses: OOM" in said.splitlines()[-1]
    assert "is not fed any more" in said
    assert "Traceback" not in said
    assert fed(own_crew) == 0


@pytest.mark.parametrize(
    ("padding", "last_lines"),
    [
        (20_000, "is not fed any more: the replay {} is stopped. Start it again to run all of it"),
        (0, "`maskline replay stop {}` stops it"),
    ],
)
def test_a_command_that_is_interrupted_says_what_becomes_of_the_rest(crew: Fleet, padding, last_lines):
    archive = archive_of(crew, padding=padding)
    with subprocess.Popen(
        command_of(archive),
        env=crew.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        job_id = wait_until(lambda: crew.client.hkeys(crew.keys.jobs), within_s=PATIENCE_S, what="the job")[0]
        wait_until(lambda: fed(crew) >= (7 if padding else SESSIONS), within_s=PATIENCE_S, what="the feeds")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == last_lines.format(job_id.decode())
    job = decode_job(crew.client.hget(crew.keys.jobs, job_id))
    assert job.stopped == bool(padding)
    assert bool(fed(crew)) == (not padding)
