"""Who has a thread next: the bounds hold, nobody waits for nothing, and everybody's turn comes."""

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


def called(it):
    found = []
    while (one := it.call()) is not None:
        found.append(one)
    return found


@given(STEPS, st.sampled_from([1, 2, 8]), st.integers(1, 4))
def test_whatever_happens_the_bounds_hold_and_nobody_waits_for_nothing(steps, threads_max, handlers):
    names = NAMES[:handlers]
    it = ThreadShares[int](names, threads_max)
    lines = {name: [] for name in names}
    under_way, hung = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for number, (step, name) in enumerate(steps):
        if name not in names:
            continue
        if step == "wait":
            it.wait(name, number)
            lines[name].append(number)
        elif step == "leave" and under_way[name]:
            it.leave(name)
            under_way[name] -= 1
        elif step == "hang" and under_way[name]:
            it.hang(name)
            under_way[name] -= 1
            hung[name] += 1
        elif step == "back" and hung[name]:
            it.come_back(name)
            hung[name] -= 1
        for handler, who in called(it):
            assert lines[handler].pop(0) == who
            under_way[handler] += 1
        threads = sum(under_way.values()) + sum(hung.values())
        assert sum(under_way.values()) <= threads_max
        assert threads <= threads_max + 6
        assert it.uses() == {one: (under_way[one], hung[one], len(lines[one])) for one in names}
        if sum(under_way.values()) == 0 and threads < threads_max + 6 - threads_max // 2:
            assert not any(lines[one] for one in names if hung[one] < 8)
        if threads_max == 8:
            # Enough for a thread of each: who has none does not wait.
            assert not any(lines[one] for one in names if not under_way[one] + hung[one])


@given(STEPS, st.sampled_from([2, 8]))
def test_one_call_for_each_seat_that_becomes_free_is_enough(steps, threads_max):
    it = ThreadShares[int](NAMES, threads_max)
    for number, (step, name) in enumerate(steps):
        use = it.use(name)
        if step == "wait":
            it.wait(name, number)
            called(it)
        elif step in ("leave", "hang") and use.under_way:
            (it.leave if step == "leave" else it.hang)(name)
            it.call()
            assert it.call() is None


def test_handlers_take_turns_and_each_line_keeps_its_order():
    it = ThreadShares[str]("ab", 1)
    for number in range(4):
        it.wait("a", f"a{number}")
    it.wait("b", "b0")
    it.wait("b", "b1")
    it.wait("a", "first", first=True)
    order = []
    while (one := it.call()) is not None:
        order.append(one[1])
        it.leave(one[0])
    assert order == ["first", "b0", "a0", "b1", "a1", "a2", "a3"]


def test_one_that_hangs_altogether_leaves_the_others_their_threads():
    it = ThreadShares[int]("ab", 8)
    for number in range(20):
        it.wait("a", number)
    while called(it):
        while it.use("a").under_way:
            it.hang("a")
    assert it.use("a") == (0, 8, 12)
    assert it.stuck() == [("a", (0, 8, 12))]
    for number in range(20):
        it.wait("b", number)
    assert len(called(it)) == 6
    it.come_back("a")
    assert [handler for handler, _ in called(it)][:1] == ["a"]


def test_those_who_leave_wait_no_more():
    it = ThreadShares[int]("ab", 1)
    for number in range(6):
        it.wait("ab"[number % 2], number)
    it.forget({0, 1, 3, 5})
    assert sorted(it.waiting()) == [2, 4]
    assert it.call() == ("a", 2)
    it.leave("a")
    assert it.call() == ("a", 4)
    assert it.waiting() == []
