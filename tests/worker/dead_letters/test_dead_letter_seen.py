"""How far handlers of dead letters have come: the state and its text in Redis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.dead_letters.seen import Seen

ids = st.builds("{}-{}".format, st.integers(0, 2**48), st.integers(0, 2**32))
states = st.builds(
    Seen, done=ids, begun=st.none() | ids, starts=st.integers(0, 99), token=st.integers(0, 2**53)
)


@given(states)
def test_state_is_read_as_it_was_written(seen):
    assert Seen.read(seen.encode().encode()) == seen


@pytest.mark.parametrize("value", [b"", b"1-1", b"1-1 - 0", b"1-1 - x 0", b"1-1 - 0 0 0", b"\xff - 0 0"])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError):  # noqa: PT011  any of them
        Seen.read(value)


@given(states, ids, st.integers(0, 9), st.integers(0, 9))
def test_a_letter_is_begun_and_finished(seen, letter_id, token, other):
    begun = seen.begin(letter_id, token)
    assert (begun.done, begun.begun) == (seen.done, letter_id)
    assert begun.starts_of(letter_id) == seen.starts_of(letter_id) + 1
    assert begun.under_way_elsewhere(letter_id, other) == (other != token)
    finished = begun.finish(letter_id, token)
    assert finished == Seen(letter_id, None, 0, token)


def test_starts_of_one_letter_do_not_count_for_the_next():
    """The one begun may have been discarded since."""
    seen = Seen("1-0", "2-0", 2, 7)
    assert seen.starts_of("3-0") == 0
    assert not seen.under_way_elsewhere("3-0", 8)
    assert seen.begin("3-0", 8) == Seen("1-0", "3-0", 1, 8)
