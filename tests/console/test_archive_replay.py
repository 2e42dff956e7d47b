"""The plan of `maskline replay --from-archive`, the sorting behind it, and its mistakes. No worker."""

import sys
from pathlib import Path

import msgspec
import pytest
from console_kit import command
from hypothesis import given, settings
from hypothesis import strategies as st
from job_kit import jobs_in, report_worker

sys.path.insert(0, str(Path(__file__).parents[1] / "handlers"))

from archive_kit import session_callbacks, write_archive
from process_kit import callback

from maskline.console.jobs.archive import session_sort
from maskline.console.jobs.archive.session_sort import SessionSort
from maskline.handlers.segments.errors import ArchiveKeyError
from maskline.handlers.segments.tokens import with_tokens
from maskline.schemas.callback import decode_callback, encode_callback
from maskline.schemas.errors import ConfigError

KEY, KEY_TEXT = b"A" * 32, "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
RECEIVED_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys, tmp_path):
    def run(*argv, code=0, **environ):
        argv = ("replay", "--from-archive", str(tmp_path / "archive"), *argv)
        assert command(monkeypatch, redis_server, namespace, *argv, **environ) == code
        return capsys.readouterr()

    return run


def at(kept, second):
    """A callback that was received so many seconds after RECEIVED_MS."""
    entry_id, value = kept
    received = msgspec.structs.replace(decode_callback(value), received_at_ms=RECEIVED_MS + second * 1000)
    return entry_id, encode_callback(received)


def plan(run, *argv, **more):
    return msgspec.json.decode(run("--dry-run", "--json", *argv, **more).out)


def test_the_plan_counts_each_callback_once_and_names_what_it_passes_over(
    run, tmp_path, redis_server, namespace
):
    kept = [at(one, 1) for one in (*session_callbacks("s1", 1, 2, 3), *session_callbacks("s2", 1))]
    unread = ("1-0", encode_callback(msgspec.structs.replace(decode_callback(kept[0][1]), body=b"%ff=1")))
    write_archive(tmp_path / "archive", [*kept, kept[0], kept[3], at(unread, 1)], per_segment=3)
    (tmp_path / "archive" / "2026" / "01" / "01").mkdir(parents=True)
    (tmp_path / "archive" / "2026" / "01" / "01" / "notes.txt").touch()
    with redis_server.client() as client:
        report_worker(client, namespace, "fares", "crm")
        found = plan(run, code=1)
        assert (found["callbacks"], found["sessions"], found["repeated"], found["undecodable"]) == (
            4,
            2,
            2,
            1,
        )
        assert (found["segments"], found["passed_over"], found["handlers"]) == (3, 1, ["crm", "fares"])
        said = run("--dry-run", "--session", "s1", code=1)
        assert "passed over: 2026/01/01/notes.txt: it has not the name of a segment" in said.out
        assert "run 3 callbacks of 1 session again, in order" in said.out
        assert "4155550123" not in said.out + said.err
        assert max(map(len, said.out.splitlines())) <= 120
        assert jobs_in(client, namespace) == []


def test_a_callback_that_is_archived_with_numbers_and_with_tokens_runs_once_with_its_numbers(run, tmp_path):
    plain = [at(one, 1) for one in session_callbacks("s1", 1, 2)]
    tokens = [(one, encode_callback(with_tokens(decode_callback(value)))) for one, value in plain]
    with SessionSort() as sort:
        for kept in (tokens[:1], plain, tokens):
            write_archive(tmp_path / "archive", kept, numbers="plain" if kept is plain else "tokens")
            for entry_id, value in kept:
                sort.add("s1", 0, entry_id, value, identity="", selected=True, tokens=kept is not plain)
        assert [*sort.callbacks_of(1)] == plain
    found = plan(run)
    assert (found["callbacks"], found["repeated"], found["tokens"]) == (2, 3, 2)


def test_times_events_and_sessions_select(run, tmp_path):
    kept = [at(one, 100 * place) for place, one in enumerate(session_callbacks("s1", 1, 2, 3, 4))]
    other = ("9-0", callback("s2", 1, EventName="SessionTimeout"))
    write_archive(tmp_path / "archive", [*kept, at(other, 5_000)], per_segment=2)
    moment = "2026-09-21T14:{}"
    assert plan(run, "--since", moment.format("15:00"))["callbacks"] == 4
    assert plan(run, "--since", moment.format("15:00"), "--until", moment.format("18:20"))["callbacks"] == 2
    assert plan(run, "--until", moment.format("15:00"))["callbacks"] == 1
    assert plan(run, "--event", "SessionTimeout")["events"] == {"SessionTimeout": 1}
    assert plan(run, "--session", "s3")["callbacks"] == 0
    assert "no callback is selected in 3 segments" in run("--session", "s3", "--dry-run").out


def test_a_wrong_key_or_folder_is_one_line_and_the_right_key_reads(run, tmp_path):
    with pytest.raises(ConfigError, match="there is no archive at"):
        run("--dry-run")
    (tmp_path / "archive" / "30").mkdir(parents=True)  # it is a month's
    assert "that has a folder for each year" in run("--dry-run").out
    write_archive(tmp_path / "archive", session_callbacks("s1", 1), key=KEY, numbers="tokens")
    with pytest.raises(ArchiveKeyError, match="MASKLINE_ARCHIVE_KEY: the archive needs the key"):
        run("--dry-run")
    said = run("--dry-run", MASKLINE_ARCHIVE_KEY=f"{'Qg' * 21 + 'Q='},{KEY_TEXT}").out
    assert "phone numbers are tokens there" in said


entries = st.tuples(st.integers(1, 50), st.integers(0, 3), st.binary(max_size=3))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "\ud800"]), entries, st.booleans()), max_size=40))
def test_sessions_come_out_whole_sorted_and_each_callback_once(given_callbacks):
    session_sort.SESSIONS_REMEMBERED_MAX, before = 1, session_sort.SESSIONS_REMEMBERED_MAX
    expected = {}
    with SessionSort() as sort:
        for session, (at_ms, counter, value), selected in given_callbacks:
            partition, entry_id = ord(session[0]) % 2, f"{at_ms}-{counter}"
            added = sort.add(session, partition, entry_id, value, identity=value.hex(), selected=selected)
            those = expected.setdefault(session, set())
            assert added == ((at_ms, counter, value) not in those)
            those.add((at_ms, counter, value))
        selected = {session for session, _, chosen in given_callbacks if chosen}
        found = {}
        for partition in sort.partitions():
            after = 0
            while (session := sort.next_session(partition, after)) is not None:
                after = session.id
                found[session.uuid] = [*sort.callbacks_of(session.id)]
    session_sort.SESSIONS_REMEMBERED_MAX = before
    assert found.keys() == selected
    for session, callbacks in found.items():
        places = [tuple(map(int, entry_id.split("-"))) for entry_id, _ in callbacks]
        assert places == sorted(places)
        assert {(*place, value) for place, (_, value) in zip(places, callbacks, strict=True)} == expected[
            session
        ]


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(session_sort.tempfile, "tempdir", str(tmp_path))
    with SessionSort() as sort:
        assert [*tmp_path.iterdir()] == []  # nobody else can open it, and nothing stays
        sort._db.execute("PRAGMA max_page_count = 8")
        big = bytes(100_000)
        with pytest.raises(ConfigError, match="do not fit into .*set TMPDIR"):
            sort.add("s", 0, "1-0", big, identity="", selected=True)
    monkeypatch.setattr(session_sort.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="do not fit into .*/none .*set TMPDIR"):
        SessionSort()
