from hypothesis import given
from hypothesis import strategies as st
from long_tests import spread


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8))
def test_all_items_are_there_once_and_the_others_keep_their_order(long, processes):
    items = list(range(len(long)))
    ordered = spread(items, long, processes)
    assert sorted(ordered) == items
    others = [item for item in ordered if not long[item]]
    assert others == sorted(others)


def test_each_process_begins_with_its_share_of_the_long_ones():
    ordered = spread("aBcdefGhijKl", [letter.isupper() for letter in "aBcdefGhijKl"], 3)
    assert "".join(ordered) == "BacdGefhKijl"
