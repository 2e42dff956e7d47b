"""What counts as the same history: only a server that has the last commit and the last entry that were seen."""

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.partitions.history import Seen, has_all

ENTRY = [b"7-0", [b"c", b"callback"]]
SEEN = Seen("5 me", {3: "4-0"}, "7-0", ENTRY)
FENCE = [b"5", b"me", b"3"]


def test_server_with_the_last_commit_and_the_last_entry_has_all():
    assert has_all(SEEN, FENCE, [ENTRY])


def test_entry_need_not_be_there_where_the_last_commit_s_cursor_stands_at_it():
    assert has_all(SEEN._replace(commits={3: "7-0"}), FENCE, [])


def test_commit_under_way_may_have_been_carried_out_or_not():
    seen = SEEN._replace(commits={3: "4-0", 4: "7-0"})
    assert has_all(seen, [b"5", b"me", b"4"], [])
    assert has_all(seen, [b"5", b"me", b"3"], [ENTRY])
    assert not has_all(seen, [b"5", b"me", b"3"], [])


def test_before_the_first_commit_the_number_is_empty():
    seen = Seen("5 me", {0: "4-0"}, "4-0", None)
    assert has_all(seen, [b"5", b"me", b""], [])
    assert not has_all(seen, [b"5", b"me", b"1"], [])


def test_history_with_anything_missing_or_foreign_is_refused():
    for fence in (
        [None, None, None],
        [b"5", None, b"3"],
        [b"6", b"me", b"3"],
        [b"5", b"you", b"3"],
        [b"5", b"me", b"2"],
        [b"5", b"me", b"4"],
        [b"5", b"me", None],
        [b"5", b"me", b"x"],
    ):
        assert not has_all(SEEN, fence, [ENTRY]), fence
    for found in (
        [],
        [[b"7-0", [b"c", b"another callback"]]],
        [[b"7-0", [b"x", b"callback"]]],
        [ENTRY, ENTRY],
    ):
        assert not has_all(SEEN, FENCE, found), found


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_server_that_lost_its_end_passes_only_if_it_has_what_was_seen(reads, commits, kept, in_flight):
    """A log of entries and commits; the server kept the first `kept` records of it."""
    log = [record for at in range(max(reads, commits)) for record in (("entry", at), ("commit", at))]
    log = [(kind, at) for kind, at in log if at < (reads if kind == "entry" else min(commits, reads))]
    there = set(log[:kept])
    confirmed = max((at for kind, at in log if kind == "commit"), default=-1)
    known = {confirmed + 1: f"{confirmed + 1}-0"}
    if in_flight and reads > confirmed + 1:
        known[confirmed + 2] = f"{confirmed + 2}-0"
    entry = [b"%d-0" % reads, [b"c", b"%d" % reads]]
    seen = Seen("5 me", known, f"{reads}-0", entry if reads else None)
    number = 1 + max((at for kind, at in there if kind == "commit"), default=-1)
    found = [entry] if reads and ("entry", reads - 1) in there else []
    assert has_all(seen, [b"5", b"me", b"%d" % number], found) == (there == set(log))
