"""The set of owned partitions: which are open, how they share the session cache, whom a change wakes."""

from dispatch_kit import partition_of_test

from maskline.worker.partitions.owned_partitions import SESSION_CACHE_MIN, OwnedPartitions
from maskline.worker.partitions.phase import Phase


def owned_of(*numbers: int, session_cache: int = 1_000) -> tuple[OwnedPartitions, list]:
    owned = OwnedPartitions(session_cache)
    partitions = [partition_of_test(number) for number in numbers]
    for partition in partitions:
        owned.add(partition)
    return owned, partitions


def test_partition_is_open_from_its_phase_open_until_it_is_paused():
    owned, (first, second) = owned_of(1, 2)
    assert list(owned.open) == []
    owned.move(first, Phase.OPEN)
    owned.move(second, Phase.OPEN)
    assert list(owned.open) == [first, second]
    owned.move(first, Phase.PAUSED)
    assert list(owned.open) == [second]
    assert list(owned) == [first, second]


def test_partition_that_was_acquired_again_is_not_removed_with_its_predecessor():
    owned, (before,) = owned_of(1)
    after = partition_of_test(1, token=8)
    owned.add(after)
    owned.remove(before)
    assert before not in owned
    assert after in owned
    assert owned.get(1) is after
    owned.remove(after)
    assert owned.get(1) is None
    assert len(owned) == 0


def test_open_partitions_share_the_session_cache_evenly_and_keep_a_minimum():
    owned, partitions = owned_of(*range(4), session_cache=1_000)
    for partition in partitions:
        owned.move(partition, Phase.OPEN)
    assert [partition.session_cache for partition in partitions] == [250] * 4
    owned.move(partitions[0], Phase.LOST)
    assert [partition.session_cache for partition in partitions[1:]] == [333] * 3
    few, (one,) = owned_of(1, session_cache=1)
    few.move(one, Phase.OPEN)
    assert one.session_cache == SESSION_CACHE_MIN


def test_observers_are_called_after_each_change_and_see_it():
    owned, (partition,) = owned_of(1)
    seen = []
    owned.on_change(lambda: seen.append(list(owned.open)))
    owned.move(partition, Phase.OPEN)
    owned.move(partition, Phase.PAUSED)
    assert seen == [[partition], []]
