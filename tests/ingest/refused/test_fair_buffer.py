"""The fair buffer: bounded in bytes, and a flood from one address pushes out nothing of another's."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.refused.fair_buffer import ITEM_OVERHEAD_BYTES, FairBuffer

MAX_BYTES = 20 * (ITEM_OVERHEAD_BYTES + 100)


def put(buffer: FairBuffer[int], address: str, item: int, size_bytes: int = 100) -> bool:
    admitted = buffer.make_room(address, size_bytes)
    if admitted:
        buffer.add(address, item, size_bytes)
    return admitted


def rest(buffer: FairBuffer[int]) -> list[tuple[str, int]]:
    return buffer.take(1 << 40)


@given(
    st.lists(
        st.one_of(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3_000)), st.integers(1, 5_000)),
        max_size=150,
    )
)
def test_buffer_is_bounded_and_loses_what_it_counts(steps):
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    admitted, taken = 0, 0
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            admitted += put(buffer, step[0], number, step[1])
        else:
            taken += len(buffer.take(step))
        assert 0 <= buffer.size_bytes <= MAX_BYTES
        assert len(buffer) == admitted - taken - buffer.pushed_out
    left = rest(buffer)
    assert len(left) == admitted - taken - buffer.pushed_out
    assert buffer.size_bytes == 0
    assert not buffer._queues, "an address without items is forgotten"
    by_address: dict[str, list[int]] = {}
    for address, number in left:
        by_address.setdefault(address, []).append(number)
    assert all(numbers == sorted(numbers) for numbers in by_address.values()), "the oldest first"


@given(
    st.lists(st.sampled_from(["flood", "flood", "flood", "b", "c", "d"]), min_size=1, max_size=200),
    st.integers(0, 2_000),
)
def test_flood_pushes_out_nothing_of_addresses_within_their_share(senders, flood_bytes):
    """With four addresses, each may have a quarter, whatever the others send."""
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    quarter = MAX_BYTES // 4 // (ITEM_OVERHEAD_BYTES + 100)
    sent: Counter[str] = Counter()
    for number, address in enumerate(senders):
        if address != "flood" and sent[address] == quarter:
            continue
        admitted = put(buffer, address, number, flood_bytes if address == "flood" else 100)
        if address != "flood":
            assert admitted
            sent[address] += 1
    kept = Counter(address for address, _ in rest(buffer))
    assert {address: kept[address] for address in sent} == dict(sent)


def test_one_address_may_have_all_the_room_that_others_leave():
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    assert [put(buffer, "a", number) for number in range(21)] == [True] * 20 + [False]
    assert put(buffer, "b", 99)
    assert buffer.pushed_out == 1
    assert Counter(address for address, _ in rest(buffer)) == {"a": 19, "b": 1}


def test_flood_beyond_its_share_is_refused_and_changes_nothing():
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    for number in range(15):
        put(buffer, "flood", number)
    for number in range(15, 20):
        put(buffer, "b", number)
    assert not any(put(buffer, "flood", number) for number in range(20, 40))
    assert buffer.pushed_out == 0
    assert {number for _, number in rest(buffer)} == set(range(20))


def test_items_are_taken_in_turns():
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    for number in range(6):
        put(buffer, "flood", number)
    put(buffer, "b", 10)
    two = 2 * (ITEM_OVERHEAD_BYTES + 100)
    assert buffer.take(two) == [("flood", 0), ("b", 10)]
    assert buffer.take(1) == [("flood", 1)], "at least one, however large"
    assert buffer.take(two) == [("flood", 2), ("flood", 3)]


def test_an_item_larger_than_the_buffer_is_refused_and_pushes_out_nothing():
    buffer: FairBuffer[int] = FairBuffer(MAX_BYTES)
    assert put(buffer, "a", 1)
    assert not put(buffer, "b", 2, MAX_BYTES)
    assert rest(buffer) == [("a", 1)]
