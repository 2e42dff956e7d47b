"""Which phase of an owned partition may follow which, and what each of them allows."""

from itertools import product

import pytest
from partition_kit import make

from maskline.worker.partitions.phase import TRANSITIONS, Phase, next_phase


@pytest.mark.parametrize(("now", "wanted"), list(product(Phase, Phase)))
def test_phase_follows_another_only_as_the_table_says(now, wanted):
    if wanted is now or wanted in TRANSITIONS[now]:
        assert next_phase(now, wanted) is wanted
    else:
        with pytest.raises(ValueError, match=f"{now.value} cannot become {wanted.value}"):
            next_phase(now, wanted)


def test_lost_partition_stays_lost():
    assert not TRANSITIONS[Phase.LOST]
    assert set(TRANSITIONS) == set(Phase)


@pytest.mark.parametrize(
    ("way", "closed", "lost"),
    [
        ([], False, False),
        ([Phase.OPEN], False, False),
        ([Phase.PAUSED], True, False),
        ([Phase.OPEN, Phase.PAUSED], True, False),
        ([Phase.OPEN, Phase.PAUSED, Phase.OPEN], False, False),
        ([Phase.LOST], True, True),
        ([Phase.OPEN, Phase.PAUSED, Phase.LOST], True, True),
    ],
)
def test_partition_starts_handlers_unless_paused_or_lost_and_commits_unless_lost(way, closed, lost):
    partition = make()
    for phase in way:
        partition.move_to(phase)
    assert (partition.closed, partition.lost) == (closed, lost)


def test_partition_refuses_to_return_from_lost_and_stays_as_it_was():
    partition = make()
    partition.move_to(Phase.LOST)
    with pytest.raises(ValueError, match="lost cannot become open"):
        partition.move_to(Phase.OPEN)
    assert partition.phase is Phase.LOST
    assert partition.closed
