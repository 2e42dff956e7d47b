"""Which entries are suspects after a worker's death, and what becomes of marks and crashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.commands.marks import Mark, decode_mark, encode_mark, mark_field
from maskline.worker.poison.tracker import (
    CRASHES_MAX,
    SUSPECTS_AHEAD_MAX,
    RunMode,
    Suspects,
    read_marks,
    run_mode,
    suspects_after_takeover,
)

MARKS = st.builds(Mark, st.integers(0, CRASHES_MAX), st.sampled_from(["idle", "running", "trial"]))


@pytest.mark.parametrize(
    ("crashes", "sandbox_available", "expected"),
    [
        (0, True, RunMode.TOGETHER),
        (0, False, RunMode.TOGETHER),
        (1, True, RunMode.SOLO),
        (1, False, RunMode.SOLO),
        (2, True, RunMode.SANDBOX),
        (2, False, RunMode.SOLO),
        (3, True, RunMode.SANDBOX),
        (3, False, RunMode.DEAD_LETTER),
    ],
)
def test_run_mode_follows_the_table(crashes, sandbox_available, expected):
    assert run_mode(crashes, sandbox_available=sandbox_available) is expected


@given(MARKS)
def test_marks_come_back_as_they_were(mark):
    assert decode_mark(encode_mark(mark).encode()) == mark


@given(st.binary(max_size=20))
def test_anything_but_a_mark_is_left_out(value):
    mark = decode_mark(value)
    assert mark is None or decode_mark(encode_mark(mark).encode()) == mark
    assert read_marks([value, b"1 running"], unclean=True) == [] or b"-" in value


@given(MARKS, st.booleans())
def test_only_a_handler_that_was_running_when_its_worker_died_has_crashed(mark, unclean):
    field = mark_field("5-1", "settle fare")
    (found,) = read_marks([field.encode(), encode_mark(mark).encode()], unclean=unclean)
    crashed = unclean and mark.state == "running"
    assert (found.entry_id, found.handler, found.crashed) == ("5-1", "settle fare", crashed)
    assert found.mark == Mark(min(mark.crashes + crashed, CRASHES_MAX), "idle")
    assert found.field == field


def suspect_of(entry_ids, **more):
    it = Suspects(unclean=True, found=[], **{"last_id": "9-0", **more})
    for entry_id in entry_ids:
        it.entry_read(entry_id, pending=False)
    return it


def test_clean_end_or_empty_partition_leaves_no_suspects():
    known = {"cursor": "5-0", "last_id": "9-0", "marks": []}
    assert suspects_after_takeover(clean=True, pending=3, **known) is None
    assert suspects_after_takeover(clean=False, pending=0, **{**known, "last_id": "5-0"}) is None
    assert suspects_after_takeover(clean=False, pending=1, **{**known, "last_id": "5-0"}) is not None
    assert suspects_after_takeover(clean=False, pending=0, **known) is not None


def test_entries_after_the_takeover_are_no_suspects():
    it = suspect_of(["8-0", "9-0", "9-1", "7-5"])
    assert it.get("8-0") is not None
    assert it.get("9-0") is not None
    assert it.get("9-1") is None
    assert it.get("7-5") is None, "nothing more is, once one beyond has come"
    assert not it.over
    it.entry_done("8-0")
    it.entry_done("9-0")
    assert it.over


def test_suspects_after_the_cursor_are_bounded():
    ids = [f"1-{number}" for number in range(SUSPECTS_AHEAD_MAX + 10)]
    it = suspect_of(ids)
    assert len(it) == SUSPECTS_AHEAD_MAX
    assert it.get(ids[SUSPECTS_AHEAD_MAX - 1]) is not None
    assert it.get(ids[SUSPECTS_AHEAD_MAX]) is None


def test_crashes_are_kept_even_after_a_clean_end_and_marks_go_with_their_entry():
    marks = [b"3-0 fares", b"2 running", b"4-0 gone", b"1 idle"]
    it = suspects_after_takeover(clean=True, cursor="2-0", pending=1, last_id="5-0", marks=marks)
    assert it is not None
    assert it.entry_read("3-0", pending=True) == []
    suspect = it.get("3-0")
    assert suspect is not None
    assert (suspect.crashes("fares"), suspect.crashes("audit")) == (2, 0)
    assert it.entry_read("6-0", pending=False) == ["4-0 gone"], (
        "the mark of an entry that somebody has deleted"
    )
    assert it.entry_done("3-0") == ["3-0 fares"]
    assert it.over
