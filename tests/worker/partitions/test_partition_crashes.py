"""A partition's bookkeeping, against a toy of what Redis keeps: a crash at any point loses and doubles nothing."""

import random

import pytest
from dispatch_kit import START_MS
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_kit import GAP_MS, fields, make

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.worker.commands.commit import Commit
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import decode_dead_letter
from maskline.worker.ordering.state import encode_state

pytestmark = pytest.mark.usefixtures("both_ways")


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
        assert commit.number == self.last_commit + 1
        self.last_commit = commit.number
        self.letters += commit.dead
        self.states.update({uuid: encode_state(state) for uuid, state in commit.states.items()})
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
        self.counters = Counters()
        self.now_ms = 0
        self.given: list[int] = []
        self.handled: list[bytes] = []
        """Callbacks handed to handlers that came to their end, by whichever owner."""
        self.promised: set[bytes] = set()
        """Those whose end was committed: they must never come again."""
        self.unsent: list[bytes] = []
        self.sent: list[bytes] = []
        self.take_over()

    def append(self, what):
        self.now_ms += self.rng.choice([0, 1, 5, GAP_MS // 2, 3 * GAP_MS])
        # No ID is given twice, also where the entry that had it was deleted.
        counter = self.given.count(self.now_ms)
        self.given.append(self.now_ms)
        self.redis.stream[b"%d-%d" % (START_MS + self.now_ms, counter)] = what

    def take_over(self):
        """A new owner, from nothing but what Redis has."""
        self.unsent, self.sent = [], []
        redis = self.redis
        redis.last_commit = 0
        self.owner = make(
            cursor=redis.cursor, entries_read=redis.entries_read, cache=2, counters=self.counters
        )
        waiting = sorted(redis.pending, key=place)
        size = self.rng.randint(1, 5)
        for at in range(0, len(waiting), size):
            page = []
            for entry_id in waiting[at : at + size]:
                if (body := redis.stream.get(entry_id.encode())) is None:
                    redis.pending.discard(entry_id)  # as XAUTOCLAIM does
                    redis.gone |= {entry_id}
                    self.owner.take_in_deleted(entry_id, START_MS)
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
            lambda session, number, variant, second, name: fields(
                SessionUUID=f"s{session}",
                SequenceNumber=number,
                EventName=name,
                Amount=variant,
                EventTimestamp=f"2026-01-05 09:00:{second:02}",
            ),
            st.sampled_from([0, 0, 0, 1, 2, 3]),
            st.sampled_from([0, 1, 1, 2, 2, 3, 3, 4, 5, 6, "null", 5_000, 5_001, 2**53 - 1]),
            st.integers(0, 1),
            st.integers(0, 59),
            st.sampled_from(
                ["SessionFirstPartyRinging"] * 6 + ["SessionRecordingCompleted", "SessionTimeout"]
            ),
        ),
        st.sampled_from([[b"x", b"y"], [CALLBACK_FIELD, b"\xc1"], fields(SessionUUID=""), []]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=examples(250))
@given(callbacks, st.randoms(use_true_random=False), st.booleans())
def test_owner_that_dies_at_any_point_loses_nothing_and_repeats_nothing_committed(entries, rng, deleting):
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


@settings(max_examples=examples(100))
@given(callbacks, st.randoms(use_true_random=False))
def test_what_is_in_memory_stays_within_its_bounds_and_loses_no_work(entries, rng):
    history = History(rng)
    for body in entries:
        history.append(body)
        rng.choice([history.read, history.handle, history.commit, history.confirm])()
        owner = history.owner
        live = set(owner._sessions)
        assert {session.uuid for session in owner.sessions_with_work()} <= live
        assert {*owner._changed, *owner._being_written} <= live, "a state that Redis may not have yet"
        assert owner.held == sum(session.held for session in owner._sessions.values())
        assert owner.unfinished == sum(len(session.queue) for session in owner._sessions.values())
        if owner.held:
            assert owner.next_deadline_ms is not None
    history.drain()
    for _ in range(3):
        history.owner.arrive(history.owner.decode((), pending=False, now_ms=0), {}, 0)
    assert history.owner.live_sessions <= 2
