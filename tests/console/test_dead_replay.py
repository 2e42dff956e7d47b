"""`dead replay` and `dead discard`: what they show, ask, start, follow and report. The test plays the workers."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from console_kit import NUMBER, command, put_letter, put_letters
from job_kit import GROUP, change_record, end_job, jobs_in, keys_of, owner, record_in, report_worker
from servers import SETTLE_S, wait_until

from maskline.console.jobs.records import JobError
from maskline.schemas.errors import ConfigError
from maskline.schemas.handler_control import Pause, encode_pause, pause_field
from maskline.schemas.jobs import Selection


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys):
    def run(*argv, code=0, **environ):
        assert command(monkeypatch, redis_server, namespace, *argv, **environ) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


def parked(server, namespace, partition, session, handler="fares", *, behind=0, **changes):
    """A parked letter with so many events behind it; its id."""
    letter_id = put_letter(
        server, namespace, partition, session_uuid=session, handler=handler, parked=True, **changes
    )
    if behind:
        with server.client() as client:
            client.rpush(keys_of(namespace).retry_queue(partition, handler, session), *[b"item"] * behind)
    return letter_id


@pytest.mark.parametrize("name", ["replay", "discard"])
def test_nothing_selected_is_wrong_usage(run, name):
    with pytest.raises(ConfigError, match=f"dead {name}: nothing is selected"):
        run("dead", name, "--yes")


@pytest.mark.parametrize("name", ["replay", "discard"])
def test_too_many_ids_are_wrong_usage(run, name):
    with pytest.raises(ConfigError, match="at most 1,000 ids"):
        run("dead", name, *[f"1-{at}-0" for at in range(1_001)])


def test_nobody_to_ask_is_wrong_usage_and_changes_nothing(run, redis_server, namespace, client, monkeypatch):
    parked(redis_server, namespace, 1, "s1")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="dead discard: stdin is no terminal.*--yes"):
        run("dead", "discard", "--all")
    assert jobs_in(client, namespace) == []
    assert not client.exists(keys_of(namespace).partition_jobs(1))


def test_dry_run_shows_what_would_be_done_and_changes_nothing(run, redis_server, namespace, client):
    parked(redis_server, namespace, 1, "s1", behind=2)
    parked(redis_server, namespace, 1, "s2", behind=1)
    parked(redis_server, namespace, 2, "s3", "crm", behind=4)
    put_letter(redis_server, namespace, 3, session_uuid="s1", code="late")  # no handler was reached
    put_letter(redis_server, namespace, 3, session_uuid="s9", handler="fares", group="others")
    report_worker(client, namespace, "fares", "other")
    report_worker(client, namespace, "crm", worker="dead", age_ms=3_600_000)

    plan = msgspec.json.decode(run("dead", "replay", "--all", "--dry-run", "--json", code=1).out)
    assert plan == {
        "letters": 4,
        "sessions": 3,
        "sessions_exact": True,
        "waiting": 7,
        "handlers": [
            {"handler": "fares", "letters": 2, "waiting": 3, "known": True},
            {"handler": None, "letters": 1, "waiting": 0, "known": None},
            {"handler": "crm", "letters": 1, "waiting": 4, "known": False},
        ],
        "missing_ids": [],
        "of_other_groups": 1,
    }
    shown = run("dead", "replay", "--all", "--dry-run", code=1).out
    assert "run again 4 dead letters of 3 sessions, with 7 events behind" in shown
    assert "fares: 2, then 3 that wait behind\n" in shown
    assert "crm: 1, then 4 that wait behind; BUT NO WORKER HAS THIS HANDLER" in shown
    assert "no handler was reached: 1: each handler of the event is called" in shown
    assert "1 of the dead letters selected belong to other consumer groups" in shown
    shown = run("dead", "discard", "--handler", "crm", "--dry-run").out
    assert shown == (
        "discard 1 dead letter of 1 session, with 4 events behind\n  crm: 1, then 4 that wait behind\n"
    )
    assert jobs_in(client, namespace) == []
    assert client.hget(keys_of(namespace).control, "revision") is None


def test_ids_that_no_letter_has_are_named(run, redis_server, namespace):
    there = parked(redis_server, namespace, 1, "s1")
    shown = run("dead", "replay", there, "1-1-1", "x", "--dry-run", code=1).out
    assert "there is no dead letter '1-1-1'" in shown
    assert "there is no dead letter 'x'" in shown
    assert "run again 1 dead letter" in shown
    assert "no dead letter is selected" in run("dead", "replay", "1-1-1", "--yes", code=1).out


def test_nothing_to_do_is_done(run, namespace, client):
    said = run("dead", "replay", "--all", "--yes")
    assert "no dead letter is selected" in said.out
    assert msgspec.json.decode(run("dead", "replay", "--all", "--yes", "--json").out)["letters"] == 0
    assert jobs_in(client, namespace) == []


def test_replay_creates_a_job_follows_it_and_reports(run, redis_server, namespace, client):
    parked(redis_server, namespace, 1, "s0")
    first = parked(redis_server, namespace, 1, "s1")
    parked(redis_server, namespace, 1, "s2", "crm")
    last = parked(redis_server, namespace, 2, "s3")
    report_worker(client, namespace, "fares")
    with owner(
        redis_server,
        namespace,
        lambda owners, job: end_job(owners, namespace, job, selected=2, succeeded=2),
    ):
        said = run("dead", "replay", "--handler", "fares", "--rate", "50", "--yes")
    (job,) = jobs_in(client, namespace)
    assert re.fullmatch(rf"replay {job.id} done: 2 succeeded\n", said.out)
    assert "run again 3 dead letters of 3 sessions" in said.err
    assert f"replay {job.id} is started" in said.err
    assert (job.kind, job.selection, job.rate) == ("dead", Selection(handler="fares"), 50.0)
    assert job.partitions == (1, 2)
    assert re.fullmatch(r".+@.+", job.by)
    assert [f"{number}-{record_in(client, namespace, job, number).end}" for number in (1, 2)] == [first, last]
    assert client.hget(keys_of(namespace).control, "revision") == b"1"


@pytest.mark.parametrize(
    ("counts", "state", "code", "said"),
    [
        ({"succeeded": 1, "failed": 2}, "done", 1, "1 succeeded, 2 failed again"),
        ({"parked": 1}, "done", 1, "1 still parked behind another dead letter of their session"),
        ({"gone": 3}, "done", 1, "3 left: no worker has their handler"),
        ({"failed": 5}, "failing", 1, "stopped by itself, as most of it failed again: 5 failed again"),
        ({"succeeded": 1}, "stopped", 1, "stopped: 1 succeeded"),
        ({}, "done", 0, "no dead letters were left"),
    ],
)
def test_exit_code_and_report_say_what_became_of_it(run, redis_server, namespace, counts, state, code, said):
    parked(redis_server, namespace, 1, "s1")
    counts = {"selected": sum(counts.values()), **counts}
    for argv in ((), ("--json",)):
        with owner(
            redis_server, namespace, lambda client, job: end_job(client, namespace, job, state, **counts)
        ):
            out = run("dead", "replay", "--all", "--yes", *argv, code=code).out
        if argv:
            row = msgspec.json.decode(out)
            assert row["state"] == state
            assert {name: row[name] for name in counts} == counts
        else:
            assert said in out
        with redis_server.client() as client:
            client.delete(keys_of(namespace).jobs)


def test_discard_reports_what_it_removed(run, redis_server, namespace):
    parked(redis_server, namespace, 1, "s1")
    with owner(
        redis_server,
        namespace,
        lambda client, job: end_job(client, namespace, job, selected=1, discarded=1),
    ):
        out = run("dead", "discard", "--session", "s1", "--yes").out
    assert re.fullmatch(r"discard \S+ done: 1 discarded\n", out)


def test_a_job_that_waits_for_a_worker_says_so_and_goes_on(run, redis_server, namespace):
    parked(redis_server, namespace, 1, "s1")

    def carry_out(client, job):
        report_worker(client, namespace, "fares")
        change_record(client, namespace, job, 1, selected=1, under_way={"fares s1": 1}, cursor="1-1")
        change_record(client, namespace, job, 1, state="stopped")  # its run is still under way
        change_record(client, namespace, job, 1, state="done", under_way={}, succeeded=1)

    with owner(redis_server, namespace, carry_out):
        said = run("dead", "replay", "--all", "--yes")
    assert f"no worker of group {GROUP!r} is alive: the replay waits until one starts" in said.err
    assert "1 succeeded" in said.out


def test_progress_says_that_a_handler_is_paused(redis_server, namespace, client):
    parked(redis_server, namespace, 1, "s1")
    report_worker(client, namespace, "fares")
    client.hset(keys_of(namespace).control, pause_field("fares"), encode_pause(Pause(since_ms=1)))
    terminal = Terminal(redis_server, namespace, "dead", "replay", "--all", "--yes")
    (job,) = wait_until(lambda: jobs_in(client, namespace), within_s=SETTLE_S)
    change_record(client, namespace, job, 1, selected=1, under_way={"fares s1": 1})
    terminal.until("paused: fares")
    end_job(client, namespace, job, selected=1, succeeded=1, under_way={})
    assert terminal.end() == 0


def test_records_that_are_gone_end_the_command(run, redis_server, namespace):
    parked(redis_server, namespace, 1, "s1")
    with (
        owner(redis_server, namespace, lambda client, _: client.delete(keys_of(namespace).partition_jobs(1))),
        pytest.raises(JobError, match="are gone from Redis"),
    ):
        run("dead", "replay", "--all", "--yes")


def test_no_number_is_shown(run, redis_server, namespace):
    parked(redis_server, namespace, 1, "s1", reason=f"no fare for {NUMBER}", callback=NUMBER.encode())
    for argv in (
        ("list",),
        ("list", "--json"),
        ("groups",),
        ("groups", "--json"),
        ("replay", "--all", "--dry-run"),
    ):
        said = run("dead", *argv)
        assert "fares" in said.out
        assert "4155550123" not in said.out + said.err


# In processes of their own


def environment(server, namespace):
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")},
        "MASKLINE_REDIS_URL": server.url,
        "MASKLINE_NAMESPACE": namespace,
        "TERM": "xterm",
        "COLUMNS": "60",
    }


MASKLINE = str(Path(sys.executable).with_name("maskline"))


def heard() -> None:
    """Let Ctrl-C be heard in a process that is begun here: a shell lets what it runs in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(server, namespace, *argv, **named):
    return subprocess.Popen(
        [MASKLINE, *argv],
        env=environment(server, namespace),
        preexec_fn=heard,  # noqa: PLW1509 - no thread of ours holds a lock that it needs
        **named,
    )


def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_it(redis_server, namespace, client):
    parked(redis_server, namespace, 1, "s1")
    process = start(
        redis_server, namespace, "dead", "replay", "--all", "--yes", stderr=subprocess.PIPE, text=True
    )
    (job,) = wait_until(lambda: jobs_in(client, namespace), within_s=SETTLE_S)
    said = iter(process.stderr.readline, "")
    assert any("is started" in line for line in said)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=SETTLE_S)[1]
    assert process.returncode == 130
    assert "maskline replay list" in rest
    assert f"maskline replay stop {job.id}" in rest
    assert record_in(client, namespace, job, 1).state == "running"


def test_a_restart_of_redis_does_not_end_the_command(own_redis, namespace):
    with own_redis.client() as client:
        parked(own_redis, namespace, 1, "s1")
        process = start(
            own_redis, namespace, "dead", "replay", "--all", "--yes",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        (job,) = wait_until(lambda: jobs_in(client, namespace), within_s=SETTLE_S)
        assert any("is started" in line for line in iter(process.stderr.readline, ""))
    own_redis.restart()
    with own_redis.client() as client:
        end_job(client, namespace, job, selected=1, succeeded=1)
    out, said = process.communicate(timeout=SETTLE_S)
    assert process.returncode == 0, said
    assert "waiting for Redis" in said
    assert "1 succeeded" in out


class Terminal:
    """A command on a terminal."""

    def __init__(self, server, namespace, *argv):
        self.shown = ""
        self._reader, writer = pty.openpty()
        self.process = start(server, namespace, *argv, stdin=writer, stdout=writer, stderr=writer)
        os.close(writer)

    def until(self, text):
        def seen():
            if select.select([self._reader], [], [], 0.01)[0]:
                self.shown += os.read(self._reader, 65536).decode()
            return text in self.shown

        wait_until(seen, within_s=SETTLE_S, what=f"{text!r} on the terminal, which shows {self.shown!r}")

    def type(self, text):
        os.write(self._reader, text.encode())

    def end(self):
        code = self.process.wait(SETTLE_S)
        os.close(self._reader)
        return code


def test_ctrl_c_at_the_question_changes_nothing(redis_server, namespace, client):
    parked(redis_server, namespace, 1, "s1")
    terminal = Terminal(redis_server, namespace, "dead", "discard", "--all")
    terminal.until("discard them for good? [y/N] ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert jobs_in(client, namespace) == []


def test_without_a_yes_nothing_is_changed(run, redis_server, namespace, client, monkeypatch):
    parked(redis_server, namespace, 1, "s1")
    terminal, operator = pty.openpty()
    with os.fdopen(operator) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        for answer in b"n\n", b"\n", b"\x04":  # the last is the end of input
            os.write(terminal, answer)
            assert "nothing was changed" in run("dead", "discard", "--all", code=1).err
    os.close(terminal)
    assert jobs_in(client, namespace) == []


def test_a_terminal_shows_a_bar(redis_server, namespace, client):
    for at in range(4):
        parked(redis_server, namespace, 1, f"s{at}")
    report_worker(client, namespace, "fares")
    terminal = Terminal(redis_server, namespace, "dead", "replay", "--all")
    terminal.until("[y/N]")
    terminal.type("y\n")
    (job,) = wait_until(lambda: jobs_in(client, namespace), within_s=SETTLE_S)
    change_record(client, namespace, job, 1, selected=3, succeeded=2, failed=1)
    terminal.until("3/4")
    end_job(client, namespace, job, selected=4, succeeded=3, failed=1)
    terminal.until("3 succeeded, 1 failed again")
    assert terminal.end() == 1


def test_a_reader_that_goes_away_ends_the_list(redis_server, namespace):
    put_letters(redis_server, namespace, count=2_000, reason="x" * 100)
    with start(
        redis_server, namespace, "dead", "list", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"[\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
