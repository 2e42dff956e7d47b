"""A partition's bookkeeping, against a toy of what Redis keeps: a crash at any point loses and doubles nothing."""

import random
from urllib.parse import urlencode

import pytest
from dispatch_kit import RECEIVED_MS, START_MS
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.callback import CALLBACK_FIELD, CALLBACK_VERSION, RawCallback, encode_callback
from schemas.parameters import FORM_TYPE
from worker.deadletter import decode_dead_letter
from worker.partition import CLOSED_SESSION_TTL_S, Commit, Partition, PartitionSettings
from worker.reorder import Policy
from worker.stats import Stats

GAP_MS = 100
SETTINGS = PartitionSettings("workers", Policy(GAP_MS, 1, 4), False, 86_400)


def fields(**parameters):
    body = urlencode({"EventName": "SessionFirstPartyRinging", "SessionUUID": "s", **parameters}).encode()
    return [CALLBACK_FIELD, encode_callback(RawCallback("POST", b"", FORM_TYPE, body, RECEIVED_MS, "MA1"))]


def entry(milliseconds, **parameters):
    return f"{START_MS + milliseconds}-0".encode(), fields(**parameters)


def make(*, cursor="0-0", entries_read=0, cache=1_000, stats=None, settings=SETTINGS) -> Partition:
    partition = Partition(3, 7, "7 me", cursor, entries_read, settings, stats or Stats())
    partition.session_cache = cache
    return partition


def take_in(partition, entries, *, states=None, pending=False, watermark=0):
    decoded = partition.decode(entries, pending=pending, now_ms=START_MS)
    return partition.arrive(decoded, states or {}, START_MS + watermark)


def finish_all(partition):
    finished = []
    while sessions := partition.sessions_with_work():
        for session in sessions:
            release = session.queue[0]
            finished.append(release)
            partition.finish(session, release)
            session.scheduled = bool(session.queue)
    return finished


# Against the toy


class Toy:
    """What Redis keeps of a partition, and what commit.lua does to it."""

    def __init__(self):
        self.stream: dict[bytes, list[bytes]] = {}
        self.cursor = "0-0"
        self.entries_read = 0
        self.pending: set[str] = set()
        self.states: dict[str, bytes] = {}
        self.letters: list[bytes] = []
        self.last_commit = 0

    def apply(self, commit: Commit):
        if commit.number == self.last_commit:
            return
        assert commit.number > self.last_commit
        self.last_commit = commit.number
        self.letters += commit.dead
        self.states.update({uuid: state for uuid, _, state in commit.states})
        self.pending |= {entry_id for entry_id in commit.waiting if entry_id.encode() in self.stream}
        assert place(commit.cursor) >= place(self.cursor), "the cursor ran backwards"
        self.cursor, self.entries_read = commit.cursor, commit.entries_read
        assert set(commit.done) <= self.pending | self.gone, "acknowledged what was never pending"
        self.pending -= set(commit.done)

    gone: frozenset[str] = frozenset()


def place(entry_id):
    return tuple(map(int, entry_id.split("-")))


class History:
    """Owners of one partition, one after the other, each of them killed at some point but the last."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.redis = Toy()
        self.stats = Stats()
        self.now_ms = 0
        self.handled: list[bytes] = []
        """Callbacks handed to handlers that came to their end, by whichever owner."""
        self.promised: set[bytes] = set()
        """Those whose end was committed: they must never come again."""
        self.unsent: list[bytes] = []
        self.sent: list[bytes] = []
        self.take_over()

    def append(self, what):
        self.now_ms += self.rng.choice([0, 1, 5, GAP_MS // 2, 3 * GAP_MS])
        counter = sum(key.startswith(b"%d-" % (START_MS + self.now_ms)) for key in self.redis.stream)
        self.redis.stream[b"%d-%d" % (START_MS + self.now_ms, counter)] = what

    def take_over(self):
        """A new owner, from nothing but what Redis has."""
        self.unsent, self.sent = [], []
        redis = self.redis
        redis.last_commit = 0
        self.owner = make(cursor=redis.cursor, entries_read=redis.entries_read, cache=2, stats=self.stats)
        waiting = sorted(redis.pending, key=place)
        size = self.rng.randint(1, 5)
        for at in range(0, len(waiting), size):
            page = []
            for entry_id in waiting[at : at + size]:
                if (body := redis.stream.get(entry_id.encode())) is None:
                    redis.pending.discard(entry_id)  # as XAUTOCLAIM does
                    redis.gone |= {entry_id}
                    self.owner.lost_while_pending(entry_id, START_MS)
                else:
                    page.append((entry_id.encode(), body))
            self.feed(page, pending=True)

    def feed(self, entries, *, pending=False, watermark_ms=0):
        decoded = self.owner.decode(entries, pending=pending, now_ms=START_MS)
        states = {uuid: self.redis.states.get(uuid) for uuid in decoded.unknown}
        if entries:
            watermark_ms = max(watermark_ms, place(entries[-1][0].decode())[0])
        self.owner.arrive(decoded, states, watermark_ms)

    def read(self):
        after = [
            (key, body)
            for key, body in self.redis.stream.items()
            if place(key.decode()) > place(self.owner.cursor)
        ]
        batch = after[: self.rng.randint(1, 6)]
        self.feed(batch, watermark_ms=0 if batch != after else START_MS + self.now_ms)

    def handle(self):
        if sessions := self.owner.sessions_with_work():
            session = self.rng.choice(sessions)
            release = session.queue[0]
            callback = release.arrival.payload.encoded
            assert callback not in self.promised, "an event whose end was committed came again"
            self.handled.append(callback)
            self.unsent.append(callback)
            self.owner.finish(session, release)
            session.scheduled = bool(session.queue)

    def commit(self):
        if self.owner.wants_commit:
            self.owner.take_commit()
            self.sent, self.unsent = self.unsent, []

    def arrives(self):
        """The commit under way gets to Redis; its reply may not get back."""
        if (commit := self.owner.commit_in_flight) is not None:
            self.redis.apply(commit)
            self.promised |= set(self.sent)

    def confirm(self):
        self.arrives()
        if self.owner.commit_in_flight is not None:
            self.owner.committed()

    def lose_room(self):
        if self.rng.random() < 0.3:
            for session in self.owner.give_up_oldest():
                session.scheduled = True

    def delete(self):
        """Somebody deletes an entry that is pending and not handled."""
        open_ids = sorted(self.redis.pending - set(self.owner._done))
        if open_ids and self.rng.random() < 0.2:
            gone = self.rng.choice(open_ids)
            body = self.redis.stream.pop(gone.encode(), None)
            if body is not None:
                self.deleted.add(body[1])

    deleted: set[bytes]

    def drain(self):
        self.now_ms += 10 * GAP_MS
        for _ in range(10_000):
            self.read()
            self.handle()
            self.commit()
            self.confirm()
            if not (self.owner.uncommitted or self.owner.open_entries) and self.owner.cursor == self.last_id:
                return
        raise AssertionError("never done")

    @property
    def last_id(self):
        return list(self.redis.stream)[-1].decode() if self.redis.stream else self.owner.cursor


STEPS = [
    "append",
    "append",
    "read",
    "read",
    "handle",
    "handle",
    "handle",
    "commit",
    "arrives",
    "confirm",
    "lose_room",
]

callbacks = st.lists(
    st.one_of(
        st.builds(
            lambda session, number, variant, name: fields(
                SessionUUID=f"s{session}", SequenceNumber=number, EventName=name, Amount=variant
            ),
            st.integers(0, 3),
            st.integers(0, 6) | st.just("null"),
            st.integers(0, 1),
            st.sampled_from(
                ["SessionFirstPartyRinging"] * 6 + ["SessionRecordingCompleted", "SessionTimeout"]
            ),
        ),
        st.sampled_from([[b"x", b"y"], [CALLBACK_FIELD, b"\xc1"], fields(SessionUUID=""), []]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=250)
@given(callbacks, st.randoms(use_true_random=False), st.booleans())
def test_whenever_the_owner_dies_nothing_is_lost_and_nothing_committed_comes_again(entries, rng, deleting):
    history = History(rng)
    history.deleted = set()
    unsent = list(entries)
    steps = [*STEPS, "die", *(["delete"] if deleting else [])]
    for _ in range(8 * len(entries)):
        match rng.choice(steps):
            case "append":
                if unsent:
                    history.append(unsent.pop(0))
            case "die":
                history.take_over()
            case step:
                getattr(history, step)()
    for left in unsent:
        history.append(left)
    history.take_over()
    history.drain()

    redis = history.redis
    assert redis.pending == set()
    assert redis.cursor == history.last_id
    assert redis.entries_read == len(entries)
    letters = [decode_dead_letter(letter) for letter in redis.letters]
    gone = {letter.entry_id for letter in letters if letter.code == "entry_gone"}
    unhandled = []
    for body in entries:
        if len(body) == 2 and (body[1] in history.handled or body[1] in history.deleted):
            continue
        unhandled.append(body)
    foreign = [
        body for body in unhandled if len(body) != 2 or body[0] != CALLBACK_FIELD or body[1] == b"\xc1"
    ]
    nameless = [body for body in unhandled if body == fields(SessionUUID="")]
    assert len(foreign) + len(nameless) == len(unhandled), "lost"
    codes = [letter.code for letter in letters if letter.entry_id not in gone]
    if not deleting:
        # Each has its letter, once: the letter and the end of the entry are one commit.
        assert codes.count("foreign_entry") == len(foreign)
        assert codes.count("no_session_uuid") == len(nameless)
        assert len(codes) == len(unhandled)
    owner = history.owner
    assert (owner.unfinished, owner.held, owner.open_entries) == (0, 0, 0)
    assert owner.next_deadline_ms is None


@settings(max_examples=100)
@given(callbacks, st.randoms(use_true_random=False))
def test_what_is_in_memory_stays_within_its_bounds_and_loses_no_work(entries, rng):
    history = History(rng)
    for body in entries:
        history.append(body)
        rng.choice([history.read, history.handle, history.commit, history.confirm])()
        owner = history.owner
        live = set(owner._sessions)
        assert {session.uuid for session in owner.sessions_with_work()} <= live
        assert set(owner._changed) | owner._being_written <= live, "a state that Redis may not have yet"
        assert owner.held == sum(session.core.held for session in owner._sessions.values())
        assert owner.unfinished == sum(len(session.queue) for session in owner._sessions.values())
        if owner.held:
            assert owner.next_deadline_ms is not None
    history.drain()
    for _ in range(3):
        history.owner.arrive(history.owner.decode((), pending=False, now_ms=0), {}, 0)
    assert history.owner.live_sessions <= 2


# One thing at a time


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
    assert commit.done == ()
    assert [uuid for uuid, _, _ in commit.states] == ["s"]
    partition.committed()
    assert not partition.uncommitted
    take_in(partition, [], watermark=GAP_MS + 2)
    finish_all(partition)
    second = partition.take_commit()
    assert (second.number, second.waiting) == (2, ())
    assert set(second.done) == {f"{START_MS + 1}-0", f"{START_MS + 2}-0"}
    assert partition.open_entries == 0


def test_what_is_done_while_a_commit_is_under_way_goes_with_the_next():
    partition = make()
    take_in(partition, [entry(0, SequenceNumber=1), entry(1, SequenceNumber=2)])
    (session,) = partition.sessions_with_work()
    partition.finish(session, session.queue[0])
    first = partition.take_commit()
    assert first.waiting == (f"{START_MS + 1}-0",)
    partition.finish(session, session.queue[0])
    assert not partition.wants_commit
    assert partition.uncommitted
    partition.committed()
    assert partition.wants_commit
    assert partition.take_commit().done == (f"{START_MS + 1}-0",)


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
    assert (commit.cursor, commit.entries_read, commit.waiting) == (f"{START_MS + 9}-0", 5, ())
    assert commit.done == (f"{START_MS}-0",)


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
    stats = Stats()
    partition = make(stats=stats)
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
    assert commit.waiting == ()
    assert len(commit.done) == (2 if pending else 0)
    assert stats.dead == {code: 1}


def test_no_number_in_the_reason_of_what_cannot_be_decoded():
    partition = make()
    take_in(partition, [entry(0, SessionUUID="+447700900123" * 20)])
    (letter,) = map(decode_dead_letter, partition.take_commit().dead)
    assert "900123" not in letter.reason


def test_an_entry_deleted_while_it_was_pending():
    partition = make()
    partition.lost_while_pending("5-1", START_MS)
    commit = partition.take_commit()
    (letter,) = map(decode_dead_letter, commit.dead)
    assert (letter.code, letter.entry_id, letter.callback) == ("entry_gone", "5-1", b"")
    assert commit.done == ("5-1",)
    assert partition.open_entries == 0


def test_duplicates_are_done_at_once():
    stats = Stats()
    partition = make(stats=stats)
    take_in(partition, [entry(0, SequenceNumber=2), entry(1, SequenceNumber=2), entry(2, SequenceNumber=1)])
    assert (stats.duplicates, partition.unfinished, partition.open_entries) == (1, 2, 2)
    assert partition.wants_commit


def test_only_sessions_not_in_memory_are_asked_for():
    partition = make()
    batch = [entry(at, SessionUUID=uuid, SequenceNumber=at) for at, uuid in enumerate("aabca", 1)]
    decoded = partition.decode(batch, pending=False, now_ms=0)
    assert decoded.unknown == ["a", "b", "c"]
    partition.arrive(decoded, {}, START_MS)
    assert partition.decode([entry(9, SessionUUID="a")], pending=False, now_ms=0).unknown == []


def test_a_state_that_cannot_be_read_starts_the_order_anew_and_is_counted():
    stats = Stats()
    partition = make(stats=stats)
    take_in(partition, [entry(0, SequenceNumber=1)], states={"s": b"scribble"})
    assert stats.unreadable_states == 1
    assert [release.order for release in finish_all(partition)] == ["in_order"]


def test_a_closed_session_is_remembered_for_an_hour_an_open_one_for_its_time():
    partition = make()
    take_in(partition, [entry(0, SequenceNumber=1), entry(1, SessionUUID="t", EventName="SessionTimeout")])
    finish_all(partition)
    lives = {uuid: life for uuid, life, _ in partition.take_commit().states}
    assert lives == {"s": 86_400, "t": CLOSED_SESSION_TTL_S}
    short = make(settings=SETTINGS._replace(session_ttl_s=60))
    take_in(short, [entry(1, SessionUUID="t", EventName="SessionTimeout")])
    finish_all(short)
    assert short.take_commit().states[0][1] == 60


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


def test_the_watermark_never_runs_backwards():
    partition = make()
    take_in(partition, [], watermark=500)
    take_in(partition, [], watermark=100)
    assert partition.watermark_ms == START_MS + 500


def test_giving_up_the_oldest_gap():
    stats = Stats()
    partition = make(stats=stats)
    assert partition.give_up_oldest() == []
    take_in(
        partition, [entry(0, SessionUUID="a", SequenceNumber=3), entry(1, SessionUUID="b", SequenceNumber=2)]
    )
    (session,) = partition.give_up_oldest()
    assert (session.uuid, session.scheduled, partition.held, stats.given_up) == ("a", True, 1, 2)
    assert session.queue[0].missing == (1, 2)
    partition.give_up_oldest()
    assert (partition.held, partition.next_deadline_ms, stats.given_up) == (0, None, 3)


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
    states = {uuid: state for uuid, _, state in commit.states}
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


def test_a_bury_wants_a_commit():
    partition = make()
    assert not partition.wants_commit
    partition.lost_while_pending("1-1", 0)
    assert partition.wants_commit
    assert partition.group == "workers"
