"""The model of retry queues: what it lets pass, and what it does not."""

import pytest
from retry_model import RETRIES, Lane, MisorderedError


def lane(numbers=(1, 2, 3), *, skips=False, counts=True):
    it = Lane("h s", skips=skips, counts=counts)
    it.numbers += numbers
    return it


def call(it, number, outcome="done", *, attempt=1, replayed=False, skipped=(), held=False):
    it.began(number, attempt, replayed=replayed, skipped=skipped)
    it.ended(outcome, attempt=attempt, held=held)


def give_up(it, number, **named):
    for attempt in range(1, RETRIES + 2):
        call(it, number, "failed", attempt=attempt, **named)


def refuses(it, number, **named):
    with pytest.raises(MisorderedError):
        call(it, number, **named)


def test_each_event_comes_once_and_in_order():
    it = lane()
    refuses(it, 2)
    call(it, 1)
    refuses(it, 1)
    call(it, 2)
    call(it, 3)
    it.check_finished()


def test_event_that_never_came_is_missed():
    it = lane()
    call(it, 1)
    with pytest.raises(MisorderedError, match=r"never called for \[2, 3\]"):
        it.check_finished()


def test_every_try_is_counted_unless_the_handler_is_held():
    it = lane()
    call(it, 1, "failed", held=True)
    call(it, 1, "cut")
    call(it, 1, "failed")
    refuses(it, 1)
    refuses(it, 2)
    call(it, 1, attempt=2)


def test_two_calls_at_once_are_refused():
    it = lane()
    it.began(1, 1, replayed=False, skipped=())
    refuses(it, 2)


def test_what_comes_behind_a_dead_letter_waits_for_an_operator():
    it = lane()
    give_up(it, 1)
    refuses(it, 2)
    refuses(it, 1, replayed=True)
    it.may_replay.add(1)
    refuses(it, 1)
    call(it, 1, replayed=True)
    call(it, 2)


def test_discarded_number_is_named():
    it = lane()
    call(it, 1, "rejected")
    refuses(it, 2, skipped=(1,))
    it.may_discard.add(1)
    refuses(it, 2)
    call(it, 2, skipped=(1,))
    call(it, 3, skipped=(1,))
    it.check_finished()


def test_handler_that_skips_goes_on_and_may_be_called_for_it_later():
    it = lane(skips=True)
    give_up(it, 1)
    refuses(it, 2)
    call(it, 2, skipped=(1,))
    with pytest.raises(MisorderedError, match="never called"):
        it.check_finished()
    it.may_replay.add(1)
    call(it, 1, replayed=True)
    refuses(it, 1, replayed=True)
    call(it, 3)
    it.check_finished()


def test_only_a_crash_takes_back_and_only_what_was_not_committed():
    it = lane()
    call(it, 1)
    it.durable()
    call(it, 2)
    refuses(it, 2)
    it.crashed()
    refuses(it, 1)
    call(it, 2)
    refuses(it, 2)
    call(it, 3)


def test_a_crash_may_have_come_after_the_commit():
    it = lane()
    call(it, 1)
    it.crashed()
    call(it, 2)
    refuses(it, 1)
