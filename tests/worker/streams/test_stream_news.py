"""What has changed is read next, and all partitions are, in time, whatever is told or not."""

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.streams.stream_news import READ_ALL_S, StreamNews

NUMBERS = range(4)
INTERVAL_S = READ_ALL_S / 50

steps = st.lists(
    st.tuples(
        st.sampled_from(["told", "not told", "nothing"]),
        st.sampled_from(NUMBERS),
        st.floats(0, READ_ALL_S / 4),
    ),
    max_size=60,
)


@given(steps, st.sets(st.sampled_from(NUMBERS)))
def test_every_change_is_read_in_time_and_one_that_is_told_at_the_next_read(steps, unreadable):
    news, now, read_at = StreamNews(), 0.0, 0.0
    unread: dict[int, tuple[float, bool]] = {}
    for kind, number, pause_s in [*steps, ("nothing", 0, READ_ALL_S), ("nothing", 0, READ_ALL_S)]:
        end = now + pause_s
        while (due_at := news.next_read_at(read_at)) <= end:
            now = read_at = max(due_at, now)
            news.note_all_if_due(NUMBERS, now)
            chosen = news.noted - unreadable
            for changed in chosen & unread.keys():
                since, told = unread.pop(changed)
                assert now - since <= (INTERVAL_S if told else READ_ALL_S) + 1e-9
            news.noted -= chosen
            read_at += INTERVAL_S
        now = end
        if kind != "nothing" and number not in unreadable:
            told = unread.get(number, (now, False))[1] or kind == "told"
            unread[number] = (now, told) if number not in unread else (unread[number][0], False)
            if told:
                news.noted.add(number)
    assert not unread
    assert unreadable <= news.noted, "they are read once they may be"


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_all_are_read_by_the_earliest_time_that_was_asked_for(now, wait_s):
    news = StreamNews()
    news.note_all_if_due(NUMBERS, now)
    news.noted.clear()
    news.read_all_by(now + wait_s)
    assert news.next_read_at(now) == min(now + wait_s, now + READ_ALL_S)
    news.note_all_soon()
    assert news.next_read_at(now) == now
    news.note_all_if_due(NUMBERS, now)
    assert news.noted == {*NUMBERS}


def test_nothing_is_read_before_the_earliest_time():
    news = StreamNews()
    news.noted.add(1)
    assert news.next_read_at(7.0) == 7.0
