"""Which handler gets a thread next: the bounds hold, no thread stays idle, and every handler has its turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.dispatch import thread_shares
from maskline.worker.dispatch.thread_shares import ThreadShares

NAMES = "abcd"
STEPS = st.lists(
    st.tuples(st.sampled_from(["wait", "leave", "hang", "back"]), st.sampled_from(NAMES)), max_size=120
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(thread_shares, "HUNG_MAX", 6)
    monkeypatch.setattr(thread_shares, "HANDLER_THREADS_MAX", 8)


def taken(shares):
    found = []
    while (one := shares.take()) is not None:
        found.append(one)
    return found


@given(STEPS, st.sampled_from([1, 2, 8]), st.integers(1, 4))
def test_bounds_hold_and_no_request_waits_while_a_thread_is_free(steps, threads_max, handlers):
    names = NAMES[:handlers]
    shares = ThreadShares[int](names, threads_max)
    queues = {name: [] for name in names}
    under_way, hung = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for number, (step, name) in enumerate(steps):
        if name not in names:
            continue
        if step == "wait":
            shares.enqueue(name, number)
            queues[name].append(number)
        elif step == "leave" and under_way[name]:
            shares.give_back(name)
            under_way[name] -= 1
        elif step == "hang" and under_way[name]:
            shares.hang(name)
            under_way[name] -= 1
            hung[name] += 1
        elif step == "back" and hung[name]:
            shares.hung_ended(name)
            hung[name] -= 1
        for handler, request in taken(shares):
            assert queues[handler].pop(0) == request
            under_way[handler] += 1
        threads = sum(under_way.values()) + sum(hung.values())
        assert sum(under_way.values()) <= threads_max
        assert threads <= threads_max + 6
        assert shares.uses() == {one: (under_way[one], hung[one], len(queues[one])) for one in names}
        if sum(under_way.values()) == 0 and threads < threads_max + 6 - threads_max // 2:
            assert not any(queues[one] for one in names if hung[one] < 8)
        if threads_max == 8:
            # Enough for a thread of each: a handler without one does not wait.
            assert not any(queues[one] for one in names if not under_way[one] + hung[one])


@given(STEPS, st.sampled_from([2, 8]))
def test_one_take_for_each_thread_that_becomes_free_is_enough(steps, threads_max):
    shares = ThreadShares[int](NAMES, threads_max)
    for number, (step, name) in enumerate(steps):
        use = shares.use(name)
        if step == "wait":
            shares.enqueue(name, number)
            taken(shares)
        elif step in ("leave", "hang") and use.under_way:
            (shares.give_back if step == "leave" else shares.hang)(name)
            shares.take()
            assert shares.take() is None


def test_handlers_take_turns_and_each_queue_keeps_its_order():
    shares = ThreadShares[str]("ab", 1)
    for number in range(4):
        shares.enqueue("a", f"a{number}")
    shares.enqueue("b", "b0")
    shares.enqueue("b", "b1")
    shares.enqueue("a", "first", first=True)
    order = []
    while (one := shares.take()) is not None:
        order.append(one[1])
        shares.give_back(one[0])
    assert order == ["first", "b0", "a0", "b1", "a1", "a2", "a3"]


def test_handler_whose_threads_all_hang_leaves_the_others_theirs():
    shares = ThreadShares[int]("ab", 8)
    for number in range(20):
        shares.enqueue("a", number)
    while taken(shares):
        while shares.use("a").under_way:
            shares.hang("a")
    assert shares.use("a") == (0, 8, 12)
    assert shares.starved() == [("a", (0, 8, 12))]
    for number in range(20):
        shares.enqueue("b", number)
    assert len(taken(shares)) == 6
    shares.hung_ended("a")
    assert [handler for handler, _ in taken(shares)][:1] == ["a"]


def test_discarded_requests_wait_no_more():
    shares = ThreadShares[int]("ab", 1)
    for number in range(6):
        shares.enqueue("ab"[number % 2], number)
    shares.discard({0, 1, 3, 5})
    assert sorted(shares.waiting()) == [2, 4]
    assert shares.take() == ("a", 2)
    shares.give_back("a")
    assert shares.take() == ("a", 4)
    assert shares.waiting() == []
