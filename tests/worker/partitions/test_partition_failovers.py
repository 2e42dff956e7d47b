"""Failovers that lose the end of the stream, clocks apart, an old primary that comes back: nothing taken is lost.

Two servers; the primary takes callbacks and commits, and now and then all of it reaches the other one. What both have
is confirmed, as by WAIT; what is not lies in a spool as well, and is sent again. Either server may become the primary
at any time, with what it has. The owner asks a server that it did not know whether it has all that was seen, as
`worker.partitions.history_check` does, and begins again where it has not; and it may die at any time.
"""

import copy
import random

import pytest
from dispatch_kit import START_MS
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_kit import GAP_MS, fields, make

from maskline.worker.commands.commit import Commit
from maskline.worker.counters import Counters
from maskline.worker.ordering.state import encode_state
from maskline.worker.partitions.history import has_all

pytestmark = pytest.mark.usefixtures("both_ways")

CLOCKS_APART_MS = 3_000


def place(entry_id):
    return tuple(map(int, entry_id.split("-")))


class Server:
    """What a server keeps of a partition: acquire.lua, commit.lua and XADD with a clock of its own."""

    def __init__(self, ahead_ms):
        self.ahead_ms = ahead_ms
        self.stream: dict[str, list[bytes]] = {}
        self.cursor, self.entries_read = "0-0", 0
        self.pending: set[str] = set()
        self.states: dict[str, bytes] = {}
        self.token, self.commit = 0, ""

    def copy_from(self, other):
        mine = self.ahead_ms
        self.__dict__ = copy.deepcopy(other.__dict__)
        self.ahead_ms = mine

    @property
    def last_id(self):
        return list(self.stream)[-1] if self.stream else "0-0"

    def add(self, now_ms, body):
        last_ms, last_counter = place(self.last_id)
        at_ms = max(START_MS + now_ms + self.ahead_ms, last_ms)
        counter = last_counter + 1 if at_ms == last_ms else 0
        self.stream[f"{at_ms}-{counter}"] = body

    def acquire(self, token_over):
        self.token, self.commit = max(self.token, token_over) + 1, ""
        return self.token

    def apply(self, token, commit: Commit):
        """1 committed, 0 fenced, 2 diverged."""
        if token != self.token:
            return 0
        if str(commit.number) == self.commit:
            return 1
        if int(self.commit or 0) + 1 != commit.number:
            return 2
        if commit.moved and commit.cursor not in self.stream:
            return 2
        if not set(commit.waiting) <= self.stream.keys():
            return 2
        self.commit = str(commit.number)
        self.states |= {uuid: encode_state(state) for uuid, state in commit.states.items()}
        self.pending |= set(commit.waiting)
        if commit.moved:
            self.cursor, self.entries_read = commit.cursor, commit.entries_read
        self.pending -= set(commit.done)
        assert place(self.cursor) <= place(self.last_id), "a cursor beyond the stream"
        return 1


class World:
    def __init__(self, rng: random.Random):
        self.rng = rng
        self.now_ms = 0
        offsets = [0, CLOCKS_APART_MS]
        rng.shuffle(offsets)
        self.primary, self.other = map(Server, offsets)
        self.spool: list[list[bytes]] = []
        """Taken, and not confirmed."""
        self.handled: set[bytes] = set()
        self.counters = Counters()
        self.token = 0
        self.take_over()

    # Ingest

    def put(self, body):
        self.now_ms += self.rng.choice([0, 1, 5, GAP_MS // 2, 3 * GAP_MS])
        self.primary.add(self.now_ms, body)
        self.spool.append(body)

    def replicate(self):
        self.other.copy_from(self.primary)
        there = list(self.primary.stream.values())
        self.spool = [body for body in self.spool if body not in there]

    def drain_spool(self):
        for body in self.spool:
            self.primary.add(self.now_ms, body)

    # Faults

    def fail_over(self):
        self.primary, self.other = self.other, self.primary
        self.connected = False

    def die(self):
        self.take_over()

    # The owner

    def take_over(self):
        server = self.primary
        self.connected = True
        token = self.token = server.acquire(self.token)
        self.owner = make(
            cursor=server.cursor, entries_read=server.entries_read, cache=2, counters=self.counters
        )
        self.owner.lease_value = f"{token} me"
        waiting = sorted(server.pending, key=place)
        for entry_id in waiting:
            self.feed([(entry_id.encode(), server.stream[entry_id])], pending=True)

    def connect(self):
        """As HistoryVerifier does with a new connection."""
        if self.connected:
            return
        server, seen = self.primary, self.owner.seen()
        body = server.stream.get(seen.read_id)
        found = [] if body is None else [[seen.read_id.encode(), body]]
        fence = [b"%d" % server.token, b"me", server.commit.encode()]
        if server.token and has_all(seen, fence, found):
            self.connected = True
        else:
            self.take_over()

    def feed(self, entries, *, pending=False, watermark_ms=0):
        decoded = self.owner.decode(entries, pending=pending, now_ms=START_MS)
        states = {uuid: self.primary.states.get(uuid) for uuid in decoded.unknown}
        if entries:
            watermark_ms = max(watermark_ms, place(entries[-1][0].decode())[0])
        self.owner.arrive(decoded, states, watermark_ms)

    def read(self):
        if not self.connected:
            return
        after = [
            [entry_id.encode(), body]
            for entry_id, body in self.primary.stream.items()
            if place(entry_id) > place(self.owner.read_id)
        ]
        batch = after[: self.rng.randint(1, 6)]
        if batch:
            self.owner.read_id, self.owner.last_entry = batch[-1][0].decode(), batch[-1]
        at_end = batch == after
        self.feed(batch, watermark_ms=START_MS + self.now_ms + self.primary.ahead_ms if at_end else 0)

    def handle(self):
        if sessions := self.owner.sessions_with_work():
            session = self.rng.choice(sessions)
            release = session.queue[0]
            self.handled.add(release.arrival.payload.encoded)
            self.owner.finish(session, release)
            session.scheduled = bool(session.queue)

    def commit(self):
        if self.owner.wants_commit:
            self.owner.take_commit()

    def arrives(self):
        """The commit under way reaches a server; whether its reply comes back is decided by `confirm`."""
        if (commit := self.owner.commit_in_flight) is None or not self.connected:
            return None
        reply = self.primary.apply(self.token, commit)
        if reply != 1:
            self.take_over()
        return reply

    def confirm(self):
        if self.arrives() == 1:
            self.owner.committed()

    def settle(self):
        self.now_ms += 10 * GAP_MS + CLOCKS_APART_MS
        for _ in range(10_000):
            for step in (self.connect, self.read, self.handle, self.commit, self.confirm):
                step()
            owner = self.owner
            idle = not (owner.uncommitted or owner.open_entries)
            if idle and self.connected and owner.cursor == self.primary.last_id:
                return
        raise AssertionError("never done")


STEPS = (
    ["put"] * 4
    + ["read"] * 3
    + ["handle"] * 3
    + [
        "commit",
        "arrives",
        "confirm",
        "confirm",
        "connect",
        "connect",
        "replicate",
        "drain_spool",
        "fail_over",
        "die",
    ]
)

callbacks = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 3, 4, 5, 6])),
    min_size=1,
    max_size=30,
    unique=True,
)


@settings(max_examples=examples(250))
@given(callbacks, st.randoms(use_true_random=False))
def test_every_accepted_callback_is_handled_whichever_server_takes_over(numbered, rng):
    world = World(rng)
    bodies = [fields(SessionUUID=f"s{session}", SequenceNumber=number) for session, number in numbered]
    unsent = list(bodies)
    for _ in range(10 * len(bodies)):
        step = rng.choice(STEPS)
        if step == "put":
            if unsent:
                world.put(unsent.pop(0))
        else:
            getattr(world, step)()
    for body in unsent:
        world.put(body)
    world.connect()
    world.drain_spool()
    world.settle()
    assert world.handled >= {body[1] for body in bodies}, "lost"
    server = world.primary
    assert server.pending == set()
    assert server.cursor == server.last_id
