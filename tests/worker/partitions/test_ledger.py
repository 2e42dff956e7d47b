"""What a partition's ledger of entries and commits says, by the partition that is built on it."""

from partition_kit import entry, finish_all, make, take_in

from maskline.worker.commands.retry_ops import Append, Pop
from maskline.worker.partitions.commit_pace import COMMIT_AHEAD


def test_entries_are_open_from_their_arrival_until_they_are_done():
    partition = make()
    take_in(partition, [entry(1, SequenceNumber="1"), entry(2, SequenceNumber="3")])
    assert partition.open_entries == 2
    finish_all(partition)
    assert partition.open_entries == 1, "the one that waits"


def test_commit_is_wanted_once_something_is_done_and_while_none_is_in_flight():
    partition = make()
    take_in(partition, [entry(1, SequenceNumber="1"), entry(2, SequenceNumber="2")])
    assert not partition.wants_commit
    finish_all(partition)
    assert partition.wants_commit
    partition.take_commit()
    assert not partition.wants_commit
    assert partition.uncommitted, "Redis has not confirmed it"
    partition.committed()
    assert not partition.uncommitted


def test_commit_is_wanted_for_entries_that_only_wait_once_there_are_many():
    partition = make()
    take_in(partition, [entry(at, SessionUUID=f"s{at}", SequenceNumber="2") for at in range(COMMIT_AHEAD)])
    assert partition.wants_commit
    assert len(partition.take_commit().waiting) == COMMIT_AHEAD
    partition.committed()
    assert partition.run_ahead == 0


def test_seen_has_the_confirmed_commit_and_the_one_in_flight():
    partition = make()
    take_in(partition, [entry(1, SequenceNumber="1")])
    finish_all(partition)
    first = partition.take_commit()
    assert partition.seen().commits == {0: "0-0", 1: first.cursor}
    partition.committed()
    assert partition.seen().commits == {1: first.cursor}


def test_retry_ops_are_worth_a_commit_and_go_with_it_once_and_in_order():
    partition = make()
    ops = Append("h", "s", 0, b"1"), Append("h", "t", 0, b"2"), Pop("h", "s")
    for op in ops:
        partition.add_retry_op(op)
    assert partition.wants_commit
    commit = partition.take_commit()
    assert tuple(commit.retry_ops) == ops
    partition.add_retry_op(Pop("h", "t"))
    assert tuple(commit.retry_ops) == ops, "a commit under way is sent again as it was"
    partition.committed()
    assert tuple(partition.take_commit().retry_ops) == (Pop("h", "t"),)
    partition.committed()
    assert not partition.uncommitted
    assert partition.take_commit().retry_ops == ()
