"""Which sessions of a window are dealt with next: each exactly once, however often a worker takes over."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.entries.entry import EntryPosition, entry_id_at, entry_position
from maskline.worker.jobs.session_spans import BATCH_ENTRIES_MAX, SessionSpans

SESSIONS = "abcdefgh"


def spans_of(entries: list[tuple[EntryPosition, str]], selected: str) -> SessionSpans:
    spans = SessionSpans()
    for at, session in entries:
        spans.add(session, at, selected=session in selected)
    return spans


@given(
    st.lists(st.sampled_from(SESSIONS), max_size=60),
    st.sampled_from(["", "abc", SESSIONS]),
    st.lists(st.integers(0, 20), max_size=8),
    st.lists(st.integers(0, 5), max_size=8),
)
def test_each_session_is_dealt_with_once_through_crashes_and_trimming(
    sessions: list[str], selected: str, crashes: list[int], trims: list[int]
) -> None:
    entries = [((1_000 + place, 0), session) for place, session in enumerate(sessions)]
    cursor, dealt_with, kept = (0, 0), Counter[str](), entries
    for crash_after, trim in zip([*crashes, 10**6], [*trims, *[0] * 9], strict=False):
        done = 0
        for batch in spans_of(kept, selected).batches(cursor):
            for session, last in zip(batch.sessions, batch.lasts, strict=True):
                if done == crash_after:
                    break
                dealt_with[session] += 1
                cursor, done = last, done + 1
        kept = kept[trim:]
    assert all(count == 1 for count in dealt_with.values())
    assert {session for _, session in kept if session in selected} <= set(dealt_with)
    assert set(dealt_with) <= set(selected)


def test_a_batch_covers_its_sessions_from_the_first_entry_to_the_last() -> None:
    entries = [((1, 0), "a"), ((2, 0), "b"), ((2, 1), "a"), ((3, 0), "c"), ((4, 0), "b")]
    (batch,) = spans_of(entries, "ab").batches((0, 0))
    assert batch == (("a", "b"), ((2, 1), (4, 0)), (1, 0))
    (batch,) = spans_of(entries, "ab").batches((2, 1))
    assert batch == (("b",), ((4, 0),), (2, 0))


def test_batches_are_bounded_by_their_entries() -> None:
    third = BATCH_ENTRIES_MAX // 3
    entries = [
        ((number * third + at, 0), session) for number, session in enumerate(SESSIONS) for at in range(third)
    ]
    batches = [batch.sessions for batch in spans_of(entries, SESSIONS).batches((0, 0))]
    assert batches == [("a", "b", "c"), ("d", "e", "f"), ("g", "h")]


def test_a_session_larger_than_a_batch_is_gathered_alone() -> None:
    entries = [((at, 0), "a" if at else "b") for at in range(BATCH_ENTRIES_MAX + 10)]
    assert [batch.sessions for batch in spans_of(entries, "ab").batches((-1, 0))] == [("b",), ("a",)]


def test_positions_are_those_of_entry_ids() -> None:
    assert entry_position("1764460800000-12") == (1764460800000, 12)
    assert entry_id_at((1764460800000, 12)) == "1764460800000-12"
    assert sorted(["10-2", "9-11", "10-10"], key=entry_position) == ["9-11", "10-2", "10-10"]
