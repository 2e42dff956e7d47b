"""What is suspected after a worker's death, and what becomes of marks and strikes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.commands.marks import Mark, decode_mark, encode_mark, mark_field
from maskline.worker.poison.tracker import (
    STRIKES_MAX,
    SUSPECTS_AHEAD_MAX,
    Step,
    Suspicion,
    read_marks,
    step,
    suspicion,
)

MARKS = st.builds(Mark, st.integers(0, STRIKES_MAX), st.sampled_from(["idle", "running", "trial"]))


@pytest.mark.parametrize(
    ("strikes", "triable", "expected"),
    [
        (0, True, Step.RUN), (0, False, Step.RUN), (1, True, Step.ALONE), (1, False, Step.ALONE),
        (2, True, Step.TRIAL), (2, False, Step.ALONE), (3, True, Step.TRIAL), (3, False, Step.BURY),
    ],
)  # fmt: skip
def test_the_table(strikes, triable, expected):
    assert step(strikes, triable=triable) is expected


@given(MARKS)
def test_marks_come_back_as_they_were(mark):
    assert decode_mark(encode_mark(mark).encode()) == mark


@given(st.binary(max_size=20))
def test_what_is_no_mark_counts_as_nothing(value):
    mark = decode_mark(value)
    assert mark is None or decode_mark(encode_mark(mark).encode()) == mark
    assert read_marks([value, b"1 running"], unclean=True) == [] or b"-" in value


@given(MARKS, st.booleans())
def test_only_a_handler_that_was_running_when_its_worker_died_is_struck(mark, unclean):
    field = mark_field("5-1", "settle fare")
    (found,) = read_marks([field.encode(), encode_mark(mark).encode()], unclean=unclean)
    struck = unclean and mark.state == "running"
    assert (found.entry_id, found.handler, found.struck) == ("5-1", "settle fare", struck)
    assert found.mark == Mark(min(mark.strikes + struck, STRIKES_MAX), "idle")
    assert found.field == field


def suspect_of(entry_ids, **more):
    it = Suspicion(unclean=True, found=[], **{"last_id": "9-0", **more})
    for entry_id in entry_ids:
        it.take_in(entry_id, pending=False)
    return it


def test_nothing_is_suspected_after_a_clean_end_or_in_an_empty_partition():
    known = {"cursor": "5-0", "last_id": "9-0", "marks": []}
    assert suspicion(clean=True, pending=3, **known) is None
    assert suspicion(clean=False, pending=0, **{**known, "last_id": "5-0"}) is None
    assert suspicion(clean=False, pending=1, **{**known, "last_id": "5-0"}) is not None
    assert suspicion(clean=False, pending=0, **known) is not None


def test_what_came_after_the_takeover_is_no_suspect():
    it = suspect_of(["8-0", "9-0", "9-1", "7-5"])
    assert it.of("8-0") is not None
    assert it.of("9-0") is not None
    assert it.of("9-1") is None
    assert it.of("7-5") is None, "nothing more is, once one beyond has come"
    assert not it.over
    it.done("8-0")
    it.done("9-0")
    assert it.over


def test_only_so_many_after_the_cursor_are_suspects():
    ids = [f"1-{number}" for number in range(SUSPECTS_AHEAD_MAX + 10)]
    it = suspect_of(ids)
    assert len(it) == SUSPECTS_AHEAD_MAX
    assert it.of(ids[SUSPECTS_AHEAD_MAX - 1]) is not None
    assert it.of(ids[SUSPECTS_AHEAD_MAX]) is None


def test_strikes_are_kept_even_after_a_clean_end_and_marks_go_with_their_entry():
    marks = [b"3-0 fares", b"2 running", b"4-0 gone", b"1 idle"]
    it = suspicion(clean=True, cursor="2-0", pending=1, last_id="5-0", marks=marks)
    assert it is not None
    assert it.take_in("3-0", pending=True) == []
    standing = it.of("3-0")
    assert standing is not None
    assert (standing.strikes("fares"), standing.strikes("audit")) == (2, 0)
    assert it.take_in("6-0", pending=False) == ["4-0 gone"], "the mark of an entry that somebody has deleted"
    assert it.done("3-0") == ["3-0 fares"]
    assert it.over
