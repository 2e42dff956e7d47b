"""A partition's bookkeeping: what is open, held, in memory, and what the next commit says."""

import pytest
from dispatch_kit import RECEIVED_MS, START_MS
from partition_kit import GAP_MS, SETTINGS, entry, fields, finish_all, make, take_in

from maskline.schemas.callback import CALLBACK_FIELD, CALLBACK_VERSION, RawCallback, encode_callback
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import decode_dead_letter
from maskline.worker.ordering.state import encode_state
from maskline.worker.partitions.ledger import CLOSED_SESSION_TTL_S

pytestmark = pytest.mark.usefixtures("both_ways")


def test_the_first_commit_has_what_waits_and_not_what_is_done():
    partition = make(entries_read=0)
    take_in(
        partition,
        [entry(0, SequenceNumber=1), entry(1, SequenceNumber=3), entry(2, SequenceNumber=2, SessionUUID="t")],
    )
    assert not partition.uncommitted, "nothing is done, nothing need be said"
    finish_all(partition)
    commit = partition.take_commit()
    assert (commit.number, commit.cursor, commit.entries_read) == (1, f"{START_MS + 2}-0", 3)
    assert set(commit.waiting) == {f"{START_MS + 1}-0", f"{START_MS + 2}-0"}
    assert not commit.done
    assert [*commit.states] == ["s"]
    partition.committed()
    assert not partition.uncommitted
    take_in(partition, [], watermark=GAP_MS + 2)
    finish_all(partition)
    second = partition.take_commit()
    assert (second.number, [*second.waiting]) == (2, [])
    assert set(second.done) == {f"{START_MS + 1}-0", f"{START_MS + 2}-0"}
    assert partition.open_entries == 0


def test_what_is_done_while_a_commit_is_under_way_goes_with_the_next():
    partition = make()
    take_in(partition, [entry(0, SequenceNumber=1), entry(1, SequenceNumber=2)])
    (session,) = partition.sessions_with_work()
    partition.finish(session, session.queue[0])
    first = partition.take_commit()
    assert [*first.waiting] == [f"{START_MS + 1}-0"]
    partition.finish(session, session.queue[0])
    assert not partition.wants_commit
    assert partition.uncommitted
    partition.committed()
    assert partition.wants_commit
    assert [*partition.take_commit().done] == [f"{START_MS + 1}-0"]


def test_an_unknown_count_of_entries_stays_unknown():
    partition = make(entries_read=-1)
    take_in(partition, [entry(0, SequenceNumber=1)])
    finish_all(partition)
    assert partition.take_commit().entries_read == -1


def test_pending_entries_move_no_cursor():
    partition = make(cursor=f"{START_MS + 9}-0", entries_read=5)
    take_in(partition, [entry(0, SequenceNumber=1)], pending=True)
    finish_all(partition)
    commit = partition.take_commit()
    assert (commit.cursor, commit.entries_read, [*commit.waiting]) == (f"{START_MS + 9}-0", 5, [])
    assert [*commit.done] == [f"{START_MS}-0"]


NEWER = [
    CALLBACK_FIELD,
    encode_callback(RawCallback("GET", b"", "", b"", 1, "", version=CALLBACK_VERSION + 1)),
]
BROKEN = [CALLBACK_FIELD, encode_callback(RawCallback("POST", b"", "application/json", b"{", 77, ""))]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ([b"x", b"y"], "foreign_entry"),
        ([b"c", b"y", b"more", b"z"], "foreign_entry"),
        ([b"odd"], "foreign_entry"),
        ([], "foreign_entry"),
        ([CALLBACK_FIELD, b""], "foreign_entry"),
        ([CALLBACK_FIELD, b"\xff\x00"], "foreign_entry"),
        (NEWER, "foreign_entry"),
        (BROKEN, "not_decodable"),
        (fields(SessionUUID=" "), "no_session_uuid"),
        (fields(SessionUUID="s" * 129), "session_uuid_too_long"),
        (fields(EventName="null"), "no_event_name"),
    ],
)
@pytest.mark.parametrize("pending", [False, True])
def test_what_cannot_be_decoded_is_a_dead_letter_and_the_partition_goes_on(what, code, pending):
    counters = Counters()
    partition = make(counters=counters)
    entries = [(f"{START_MS}-0".encode(), what), entry(1, SequenceNumber=1)]
    take_in(partition, entries, pending=pending)
    assert len(finish_all(partition)) == 1
    commit = partition.take_commit()
    (letter,) = map(decode_dead_letter, commit.dead)
    assert (letter.code, letter.entry_id, letter.handler, letter.attempts) == (code, f"{START_MS}-0", None, 0)
    assert letter.reason.startswith(code.replace("_", " "))
    assert (letter.failed_at_ms, letter.group) == (START_MS, "workers")
    ours = len(what) == 2 and what[0] == CALLBACK_FIELD
    assert letter.callback == (what[1] if ours else b"")
    if not ours:
        assert letter.foreign_fields == list(zip(what[::2], what[1::2], strict=False))
    assert letter.received_at_ms == {"not_decodable": 77, "foreign_entry": None}.get(code, RECEIVED_MS)
    assert not commit.waiting
    assert len(commit.done) == (2 if pending else 0)
    assert counters.dead == {code: 1}


def test_values_that_cannot_be_read_are_counted_once_by_attribute():
    counters = Counters()
    partition = make(counters=counters)
    entries = [
        *(
            entry(number, SequenceNumber=number, EventTimestamp="2024-02-01 06:28:15 +0000 UTC")
            for number in range(1, 9)
        ),
        entry(9, SequenceNumber=9, EventTimestamp="01/02/2024"),
        entry(10, SequenceNumber="x", Amount="1,5", EventTimestamp="1706768895", Unknown="01/02/2024"),
        entry(11, SequenceNumber=11, EventTimestamp="yesterday", From="not a number, but a text"),
    ]
    take_in(partition, entries)
    assert counters.unreadable == {"EventTimestamp": 2, "SequenceNumber": 1, "Amount": 1}
    take_in(partition, entries, pending=True)  # again, as after a takeover
    assert counters.unreadable == {"EventTimestamp": 2, "SequenceNumber": 1, "Amount": 1}


MOMENT_US = 1_706_768_895_000_000


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-01 06:28:15 +0000 UTC",
        "2024-02-01 06:28:15  0000 UTC",
        "2024-02-01T06:28:15 00:00",
        "1706768895",
        "2024-02-01 06:28:15 +0000 UTC m=+0.1",
        "Thu, 01 Feb 2024 06:28:15 GMT",
        "1706768895000",
        "Thu Feb  1 06:28:15 2024",
    ],
)
def test_order_knows_the_moment_however_it_is_written(text):
    """Of a callback that has no template yet, and of one that has."""
    partition = make()
    for number in range(10):
        (arrival,) = partition.decode(
            [entry(number, EventTimestamp=text)], pending=False, now_ms=START_MS
        ).arrivals
        assert arrival.timestamp_us == MOMENT_US


def test_no_number_in_the_reason_of_what_cannot_be_decoded():
    partition = make()
    take_in(partition, [entry(0, SessionUUID="+447700900123" * 20)])
    (letter,) = map(decode_dead_letter, partition.take_commit().dead)
    assert "900123" not in letter.reason


def test_an_entry_deleted_while_it_was_pending():
    partition = make()
    partition.take_in_deleted("5-1", START_MS)
    commit = partition.take_commit()
    (letter,) = map(decode_dead_letter, commit.dead)
    assert (letter.code, letter.entry_id, letter.callback) == ("entry_gone", "5-1", b"")
    assert [*commit.done] == ["5-1"]
    assert partition.open_entries == 0


def test_duplicates_are_done_at_once():
    counters = Counters()
    partition = make(counters=counters)
    take_in(partition, [entry(0, SequenceNumber=2), entry(1, SequenceNumber=2), entry(2, SequenceNumber=1)])
    assert (counters.duplicates, partition.unfinished, partition.open_entries) == (1, 2, 2)
    assert partition.wants_commit


def test_only_sessions_not_in_memory_are_asked_for():
    partition = make()
    batch = [entry(at, SessionUUID=uuid, SequenceNumber=at) for at, uuid in enumerate("aabca", 1)]
    decoded = partition.decode(batch, pending=False, now_ms=0)
    assert decoded.unknown == ["a", "b", "c"]
    partition.arrive(decoded, {}, START_MS)
    assert partition.decode([entry(9, SessionUUID="a")], pending=False, now_ms=0).unknown == []


def test_a_state_that_cannot_be_read_starts_the_order_anew_and_is_counted():
    counters = Counters()
    partition = make(counters=counters)
    take_in(partition, [entry(0, SequenceNumber=1)], states={"s": b"scribble"})
    assert counters.unreadable_states == 1
    assert [release.order for release in finish_all(partition)] == ["in_order"]


def test_a_closed_session_is_remembered_for_an_hour_an_open_one_for_its_time():
    partition = make()
    take_in(partition, [entry(0, SequenceNumber=1), entry(1, SessionUUID="t", EventName="SessionTimeout")])
    finish_all(partition)
    commit = partition.take_commit()
    assert {uuid: state.closed for uuid, state in commit.states.items()} == {"s": False, "t": True}
    assert (commit.life_s, commit.closed_life_s) == (86_400, CLOSED_SESSION_TTL_S)
    short = make(settings=SETTINGS._replace(session_ttl_s=60))
    take_in(short, [entry(1, SessionUUID="t", EventName="SessionTimeout")])
    finish_all(short)
    assert short.take_commit().closed_life_s == 60


@pytest.mark.parametrize("shared", [False, True])
def test_recordings_count_apart_unless_shared(shared):
    partition = make(settings=SETTINGS._replace(recording_shared=shared))
    take_in(
        partition,
        [entry(0, SequenceNumber=1), entry(1, SequenceNumber=1, EventName="SessionRecordingInitiated")],
    )
    assert [release.order for release in finish_all(partition)] == [
        "in_order",
        "late" if shared else "in_order",
    ]


def test_deadlines_are_those_of_the_oldest_held_of_each_session():
    partition = make()
    assert partition.next_deadline_ms is None
    take_in(partition, [entry(0, SequenceNumber=5), entry(10, SessionUUID="t", SequenceNumber=5)])
    assert partition.next_deadline_ms == START_MS + GAP_MS
    take_in(partition, [], watermark=GAP_MS - 1)
    assert partition.held == 2
    take_in(partition, [], watermark=GAP_MS)
    assert (partition.held, partition.next_deadline_ms) == (1, START_MS + 10 + GAP_MS)
    take_in(
        partition,
        [entry(20, SessionUUID="t", SequenceNumber=number) for number in (1, 2, 3, 4)],
        watermark=20,
    )
    assert (partition.held, partition.next_deadline_ms) == (0, None)


def stamped(milliseconds, number, second, **more):
    return entry(milliseconds, SequenceNumber=number, EventTimestamp=f"2026-01-05 09:00:{second:02}", **more)


def ends_of(partition):
    """What handlers got of it, and what is left of it."""
    releases = [(one.arrival.number, one.order, one.run) for one in finish_all(partition)]
    commit = partition.take_commit()
    partition.committed()
    return releases, commit


@pytest.mark.parametrize("opening", [False, True])
def test_what_is_undecided_is_decided_alike_by_the_next_owner_and_then_done(opening):
    """It stays in the pending list meanwhile, as what is held does."""
    first = make()
    take_in(first, [stamped(at, number, number) for at, number in enumerate((1, 2, 3))])
    take_in(
        first,
        [stamped(5, 3, 30), stamped(6, 2, 41), stamped(7, 2**53 - 1, 50), stamped(8, 4, 8)],
        watermark=8,
    )
    releases, commit = ends_of(first)
    assert releases == [(number, "in_order", 0) for number in (1, 2, 3, 4)]
    assert set(commit.waiting) == {f"{START_MS + ms}-0" for ms in (5, 6, 7)}
    assert first.held == 3

    states = {uuid: encode_state(state) for uuid, state in commit.states.items()}
    second = make(cursor=commit.cursor, entries_read=commit.entries_read)
    pending = [stamped(5, 3, 30), stamped(6, 2, 41), stamped(7, 2**53 - 1, 50)]
    take_in(second, pending, states=states, pending=True)
    assert (second.held, second.next_deadline_ms) == (3, START_MS + 5 + GAP_MS)
    if opening:
        take_in(second, [stamped(20, 1, 40, EventName="SessionFirstPartyInitiated")], watermark=20)
    take_in(second, [stamped(21, 6, 9), stamped(22, 5, 9)], watermark=22)
    take_in(second, [], watermark=GAP_MS + 7)
    expected = {
        True: [(1, "in_order", 1), (3, "late", 1), (2, "in_order", 1), (6, "late", 1), (5, "late", 1)],
        False: [(5, "in_order", 0), (6, "in_order", 0), (3, "late", 0), (2, "late", 0)],
    }[opening]
    releases, commit = ends_of(second)
    assert releases == [*expected, (2**53 - 1, "late", int(opening))]
    assert set(commit.done) >= {f"{START_MS + ms}-0" for ms in (5, 6, 7)}
    assert (second.open_entries, second.held, second.next_deadline_ms) == (0, 0, None)


def test_the_watermark_never_runs_backwards():
    partition = make()
    take_in(partition, [], watermark=500)
    take_in(partition, [], watermark=100)
    assert partition.watermark_ms == START_MS + 500


def test_give_up_oldest_releases_after_the_oldest_gap():
    counters = Counters()
    partition = make(counters=counters)
    assert partition.give_up_oldest() == []
    take_in(
        partition, [entry(0, SessionUUID="a", SequenceNumber=3), entry(1, SessionUUID="b", SequenceNumber=2)]
    )
    (session,) = partition.give_up_oldest()
    assert (session.uuid, session.scheduled, partition.held, counters.given_up) == ("a", True, 1, 2)
    assert session.queue[0].missing == (1, 2)
    partition.give_up_oldest()
    assert (partition.held, partition.next_deadline_ms, counters.given_up) == (0, None, 3)


def test_idle_sessions_leave_memory_and_come_back_from_their_states():
    partition = make(cache=1)
    take_in(partition, [entry(at, SessionUUID=f"s{at}", SequenceNumber=1) for at in range(5)])
    assert partition.live_sessions == 5, "all have work"
    finish_all(partition)
    for session in partition._sessions.values():
        session.scheduled = False
    take_in(partition, [])
    assert partition.live_sessions == 5, "none of the states is written"
    commit = partition.take_commit()
    take_in(partition, [])
    assert partition.live_sessions == 5, "nor while they are being written"
    partition.committed()
    take_in(partition, [])
    assert partition.live_sessions == 1
    states = {uuid: encode_state(state) for uuid, state in commit.states.items()}
    decoded = partition.decode([entry(9, SessionUUID="s0", SequenceNumber=1)], pending=False, now_ms=0)
    assert decoded.unknown == ["s0"]
    assert partition.arrive(decoded, states, START_MS) == [], "the duplicate is known"


def test_sessions_silent_for_longer_than_redis_remembers_are_forgotten():
    partition = make(settings=SETTINGS._replace(session_ttl_s=60))
    take_in(partition, [entry(0, SequenceNumber=1), entry(59_000, SessionUUID="t", SequenceNumber=1)])
    for release in finish_all(partition):
        assert release.order == "in_order"
    partition.take_commit()
    partition.committed()
    take_in(partition, [], watermark=59_999)
    assert partition.live_sessions == 2
    take_in(partition, [], watermark=60_000)
    assert list(partition._sessions) == ["t"]


def test_a_held_event_keeps_its_session_in_memory():
    partition = make(cache=0)
    take_in(partition, [entry(0, SequenceNumber=2)])
    take_in(partition, [])
    assert partition.live_sessions == 1


def test_dead_letter_wants_a_commit():
    partition = make()
    assert not partition.wants_commit
    partition.take_in_deleted("1-1", 0)
    assert partition.wants_commit
    assert partition.group == "workers"


def test_what_was_released_before_something_failed_is_counted():
    class Few(dict):
        def get(self, uuid):
            if uuid == "v":
                raise RuntimeError("no more")
            return super().get(uuid)

    partition = make()
    with pytest.raises(RuntimeError, match="no more"):
        take_in(
            partition,
            [entry(0, SequenceNumber=1), entry(1, SequenceNumber=1, SessionUUID="v")],
            states=Few(s=None),
        )
    assert partition.unfinished == 1
    assert len(finish_all(partition)) == 1
    assert partition.unfinished == 0


def test_the_session_that_was_used_longest_ago_leaves_memory_first():
    partition = make(cache=2)
    for at, (session, number) in enumerate([("a", 1), ("b", 1), ("a", 2), ("c", 1)]):
        take_in(partition, [entry(at, SequenceNumber=number, SessionUUID=session)])
        finish_all(partition)
        partition.take_commit()
        partition.committed()
    assert [*partition._sessions] == ["a", "c"]


@pytest.mark.parametrize("why", ["waiting", "scheduled", "queue"])
def test_of_many_sessions_over_the_bound_one_with_work_stays(why):
    partition, names = make(), [f"s{at}" for at in range(400)]
    numbers = [3 if (name, why) == ("s200", "waiting") else 1 for name in names]
    some = zip(names, numbers, strict=True)
    take_in(partition, [entry(at, SessionUUID=name, SequenceNumber=n) for at, (name, n) in enumerate(some)])
    finish_all(partition)
    if why != "waiting":
        setattr(partition._sessions["s200"], why, True if why == "scheduled" else [None])
    partition.take_commit()
    partition.committed()
    partition.session_cache = 10
    take_in(partition, [])
    assert len(partition._sessions) in (10, 11), "where it was looked at, it counted"
    assert partition._sessions.keys() >= {"s200", *names[-9:]}
