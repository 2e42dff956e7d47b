"""The reorderer and the brute-force model: every arrival order, a crash anywhere, any batching of expiry."""

from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from reorder_model import Model, Spooled

from maskline.worker.ordering.reorder import Arrival, Duplicate, Policy, Release, SessionOrder
from maskline.worker.ordering.spool_history import SpoolHistory, _Hold
from maskline.worker.ordering.state import SessionState, decode_state, encode_state

GAP_MS = 5_000
SPOOL_MS = 8_000
THE_END_MS = 10**9
PLAIN = Policy(GAP_MS, first_sequence=1, held_max=256)

Draft = tuple[int | None, bytes, int | None, bool, bool, bool]
"""An arrival without its time: number, fingerprint, timestamp, recording, ends the session, may open a run."""
Seen = tuple[object, str, tuple[int, ...], int]
"""What is to be seen of a release: payload, order, missing, run."""


@dataclass(frozen=True)
class History:
    policy: Policy
    arrivals: tuple[Arrival, ...]
    watermarks: tuple[tuple[int, ...], ...]
    """Before each arrival (and after the last), what `expire` is called with."""
    spooled: tuple[Spooled, ...] = ()
    """When nodes are known to hold spooled callbacks."""


class Spools(SpoolHistory):
    """Holds what a history says."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._past = {_Hold(it.since_ms, it.until_ms, it.gaps_only) for it in history.spooled}


def stamp(drafts: list[Draft], waits_ms: list[int]) -> tuple[Arrival, ...]:
    arrived_ms, arrivals = 0, []
    for index, (draft, wait_ms) in enumerate(zip(drafts, waits_ms, strict=True)):
        arrived_ms += wait_ms
        arrivals.append(Arrival(*draft, arrived_ms, index))
    return tuple(arrivals)


def watermarks_between(arrivals: tuple[Arrival, ...], random: Random) -> tuple[tuple[int, ...], ...]:
    between, start = [], 0
    for arrival in arrivals:
        between.append(
            tuple(
                sorted(random.randint(start, arrival.arrived_ms) for _ in range(random.choice((0, 0, 1, 2))))
            )
        )
        start = arrival.arrived_ms
    between.append((start + random.choice((0, 1, GAP_MS, 2 * GAP_MS)),))
    return tuple(between)


def policies() -> st.SearchStrategy[Policy]:
    return st.builds(
        Policy,
        gap_timeout_ms=st.just(GAP_MS),
        first_sequence=st.sampled_from((1, 1, 1, 0, 2, 5)),
        held_max=st.sampled_from((256, 256, 1, 2, 3, 0)),
        gap_spool_ms=st.just(SPOOL_MS),
    )


def spooled() -> st.SearchStrategy[tuple[Spooled, ...]]:
    """None, as nearly always, or up to three intervals over the time of a history."""
    some = st.builds(
        lambda since_ms, lasts_ms, gaps_only: Spooled(since_ms, since_ms + lasts_ms, gaps_only),
        st.integers(-2_000, 20_000),
        st.sampled_from((0, 300, 4_000, SPOOL_MS - 1, SPOOL_MS, 3 * SPOOL_MS)),
        st.booleans(),
    )
    return st.lists(some, max_size=3).map(tuple)


FAR = (1_001, 1_002, 1_003, 1_990, 2_003, 3_004, 2**53 - 2, 2**53 - 1)
"""Around what is believed without another beside it."""

WAITS_MS = (0, 0, 1, 200, 1_000, 3_000, GAP_MS - 1, GAP_MS, 7_000)


@st.composite
def wild_histories(draw: st.DrawFn) -> History:
    """Anything at all, over few enough values to meet every corner."""
    draft = st.tuples(
        st.sampled_from((0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 9, None, *draw(st.sampled_from(((), FAR))))),
        st.sampled_from((b"aaaaaaaa", b"bbbbbbbb", b"cccccccc")),
        st.one_of(st.none(), st.integers(0, 8)),
        st.sampled_from((False, False, False, True)),
        st.sampled_from((False,) * 8 + (True,)),
        st.sampled_from((False, True, True)),
    )
    drafts = draw(st.lists(draft, max_size=16))
    later_us = draw(st.sampled_from((0, 3)))
    drafts = [
        (n, mark, None if us is None else us + later_us * at, *rest)
        for at, (n, mark, us, *rest) in enumerate(drafts)
    ]
    waits = draw(st.lists(st.sampled_from(WAITS_MS), min_size=len(drafts), max_size=len(drafts)))
    arrivals = stamp(drafts, waits)
    return History(
        draw(policies()), arrivals, watermarks_between(arrivals, draw(st.randoms())), draw(spooled())
    )


@st.composite
def call_histories(draw: st.DrawFn) -> History:
    """Sessions as they are: calls whose numbering starts again or runs on, shuffled, doubled, with holes.

    Some callbacks come again with a parameter changed, or stamped anew; here and there a number is damaged.
    """
    random = draw(st.randoms())
    own_recordings, start = random.random() < 0.5, random.choice((0, 1))
    restarts = random.random() < 0.7
    drafts: list[Draft] = []
    numbers, clock_us = {False: start, True: start}, 1_000
    for _ in range(random.choice((1, 2, 2, 3))):
        if restarts:
            numbers = {False: start, True: start}
        for _ in range(random.randint(1, 6)):
            clock_us += random.choice((0, 1, 1, 5, 30))
            recording = random.random() < 0.25 and own_recordings
            number = None if random.random() < 0.1 else numbers[recording]
            numbers[recording] += number is not None
            us = None if random.random() < 0.1 else clock_us
            opens = random.random() < (0.8 if number in (start, None) else 0.1)
            drafts.append((number, random.randbytes(8), us, recording, False, opens))
        clock_us += random.choice((1, 100))
    if random.random() < 0.5:
        drafts.append(
            (random.choice((None, None, numbers[False])), random.randbytes(8), clock_us, False, True, False)
        )
    drafts = [draft for draft in drafts if random.random() > 0.1]
    drafts += [draft for draft in drafts if random.random() < 0.15]
    drafts += [altered(draft, random, clock_us) for draft in drafts if random.random() < 0.15]
    reach = random.choice((0, 2, 5, 100))
    drafts = [
        draft
        for _, draft in sorted(
            ((at + random.uniform(0, reach), draft) for at, draft in enumerate(drafts)),
            key=lambda pair: pair[0],
        )
    ]
    waits = [random.choice((0, 0, 0, 1, 10, 400, random.choice(WAITS_MS))) for _ in drafts]
    arrivals = stamp(drafts, waits)
    return History(draw(policies()), arrivals, watermarks_between(arrivals, random), draw(spooled()))


def altered(draft: Draft, random: Random, until_us: int) -> Draft:
    """The same event in another callback: a parameter differs, it is stamped anew, or its number is damaged."""
    number, _, us, *rest = draft
    if number is not None and random.random() < 0.2:
        number = random.choice(FAR)
    if us is not None and random.random() < 0.6:
        us = random.randint(us, until_us + 50)
    return (number, random.randbytes(8), us, *rest)


@st.composite
def long_histories(draw: st.DrawFn) -> History:
    """More releases than are remembered, then repeats and zeros from around that bound."""
    before: list[Draft] = [
        (number, b"%08d" % number, number, False, False, True) for number in range(draw(st.integers(62, 68)))
    ]
    repeated = st.sampled_from(before[:6])
    restarted = st.builds(
        lambda one, us: (one[0], b"restarts", us, False, False, True), repeated, st.integers(60, 80)
    )
    arrivals = stamp(
        [*before, *(tail := draw(st.lists(st.one_of(repeated, restarted), min_size=1, max_size=8)))],
        [1] * (len(before) + len(tail)),
    )
    return History(PLAIN, arrivals, ((),) * (len(arrivals) + 1))


histories = st.one_of(call_histories(), wild_histories())


def seen(release: Release) -> Seen:
    return (release.arrival.payload, release.order, release.missing, release.run)


def again(session: SessionOrder) -> None:
    """Put the state through its encoding, as at a takeover; what is held stays."""
    encoded = encode_state(session.state)
    session.state = decode_state(encoded)
    assert encode_state(session.state) == encoded


def play(history: History, *, reencode: bool = False) -> list[Release | Duplicate]:
    session, outcomes, spools = SessionOrder(), [], Spools(history)
    for arrival, watermarks in zip(history.arrivals, history.watermarks, strict=False):
        for watermark_ms in watermarks:
            outcomes += session.expire(watermark_ms, history.policy, spools)
        outcomes += session.arrive(arrival, history.policy, spools)
        assert session.held <= history.policy.held_max
        if reencode:
            again(session)
    for watermark_ms in (*history.watermarks[-1], THE_END_MS):
        outcomes += session.expire(watermark_ms, history.policy, spools)
    assert session.held == 0
    assert session.deadline_ms(history.policy) is None
    return outcomes


def released(outcomes: list[Release | Duplicate]) -> list[Release]:
    return [outcome for outcome in outcomes if isinstance(outcome, Release)]


def agree(history: History, outcomes: list[Release | Duplicate]) -> None:
    model = Model(history.policy, history.spooled)
    for arrival in history.arrivals:
        model.arrive(arrival)
    model.expire(THE_END_MS)
    expected = [(one.arrival.payload, one.order, one.missing, one.run) for one in model.releases()]
    assert [seen(release) for release in released(outcomes)] == expected
    doubled = [outcome.arrival.payload for outcome in outcomes if isinstance(outcome, Duplicate)]
    assert doubled == [arrival.payload for arrival in model.duplicates]


@settings(max_examples=examples(300), deadline=None)
@given(histories)
def test_agrees_with_the_model(history: History) -> None:
    agree(history, play(history))


@settings(max_examples=40, deadline=None)
@given(long_histories())
def test_agrees_with_the_model_about_what_is_forgotten(history: History) -> None:
    agree(history, play(history))


@settings(max_examples=examples(100), deadline=None)
@given(histories)
def test_the_state_survives_its_encoding_at_every_step(history: History) -> None:
    agree(history, play(history, reencode=True))


@settings(max_examples=examples(100), deadline=None)
@given(histories)
def test_how_often_expire_is_called_makes_no_difference(history: History) -> None:
    never = replace(history, watermarks=((),) * (len(history.arrivals) + 1))
    one_by_one = play(history)
    assert [seen(release) for release in released(play(never))] == [
        seen(release) for release in released(one_by_one)
    ]


@settings(max_examples=examples(200), deadline=None)
@given(histories)
def test_nothing_is_lost_and_a_run_only_rises(history: History) -> None:
    outcomes = play(history)
    assert sorted(outcome.arrival.payload for outcome in outcomes) == list(range(len(history.arrivals)))
    last: dict[tuple[bool, int], int] = {}
    for release in released(outcomes):
        assert bool(release.missing) <= (release.order == "after_gap")
        if release.order in ("in_order", "after_gap"):
            lane = (release.arrival.recording, release.run)
            assert release.arrival.number is not None
            assert release.arrival.number > last.get(lane, -1)
            last[lane] = release.arrival.number


def crash_and_go_on(
    history: History, state: SessionState, handled: set[object], acknowledged: set[object]
) -> list[tuple[Seen, bytes]]:
    """A new owner: the committed state, and the stream again without what was handled or acknowledged."""
    session, outcomes, spools = SessionOrder(decode_state(encode_state(state))), [], Spools(history)
    for arrival in history.arrivals:
        if arrival.payload not in handled and arrival.payload not in acknowledged:
            outcomes += session.arrive(arrival, history.policy, spools)
    outcomes += session.expire(THE_END_MS, history.policy, spools)
    return [(seen(release), encode_state(release.state)) for release in released(outcomes)]


@settings(max_examples=examples(300), deadline=None)
@given(histories)
def test_a_crash_after_any_release_changes_nothing(history: History) -> None:
    outcomes = play(history)
    releases = released(outcomes)
    whole = [(seen(release), encode_state(release.state)) for release in releases]
    every_duplicate = {one.arrival.payload for one in outcomes if isinstance(one, Duplicate)}
    for cut in range(len(releases) + 1):
        handled = {release.arrival.payload for release in releases[:cut]}
        state = releases[cut - 1].state if cut else SessionState()
        before = outcomes[: outcomes.index(releases[cut - 1])] if cut else []
        # Duplicates dropped after the last commit may or may not have been acknowledged when the worker died.
        dropped_before = {one.arrival.payload for one in before if isinstance(one, Duplicate)}
        for acknowledged in (dropped_before, every_duplicate):
            assert crash_and_go_on(history, state, handled, acknowledged) == whole[cut:]


def true_releases(arrivals: tuple[Arrival, ...], true: set[object]) -> list[tuple[int, Seen]]:
    """What is released of those that are meant, and when."""
    session, got = SessionOrder(), []
    for arrival in arrivals:
        got += [(arrival.arrived_ms, one) for one in released([*session.arrive(arrival, PLAIN)])]
    for late_ms in range(1, GAP_MS + 2_000):
        watermark_ms = arrivals[-1].arrived_ms + late_ms
        got += [(watermark_ms, one) for one in session.expire(watermark_ms, PLAIN)]
    return [(at_ms, seen(one)) for at_ms, one in got if one.arrival.payload in true]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.integers(2, 9), st.integers(0, 1), st.floats(0, 6), st.sets(st.integers(1, 8)), st.randoms(), st.data()
)
def test_callbacks_that_come_again_with_a_change_disturb_nothing(
    size: int, first: int, reach: float, lost: set[int], random: Random, data: st.DataObject
) -> None:
    """Without the model: what is meant comes as though nothing had come again, at the same moment."""
    drafts: list[Draft] = [
        (first + at, b"%08d" % at, 10 * at, False, False, at == 0) for at in range(size) if at not in lost
    ]
    # The opening comes first: where 1 overtakes 0, nobody can tell which of them opens calls.
    arrived = sorted((at and at + random.uniform(0, reach), at) for at in range(len(drafts)))
    arrivals = [Arrival(*drafts[at], place, at) for place, (_, at) in enumerate(arrived)]
    true: set[object] = {arrival.payload for arrival in arrivals}
    disturbed = list(arrivals)
    for count in range(data.draw(st.integers(1, 6))):
        of = data.draw(st.integers(0, len(disturbed) - 1))
        number, _, us, *_ = drafts[disturbed[of].payload % len(drafts)]
        assert number is not None
        assert us is not None
        how = data.draw(st.sampled_from(("changed", "stamped anew", "damaged")))
        if how == "damaged":
            number = 2**53 - 1
        elif how == "stamped anew" and number > 1:  # 0 and 1 may open a call anew
            us += data.draw(st.integers(0, 200))
        again = (number, random.randbytes(8), us, False, False, data.draw(st.booleans()))
        place = data.draw(st.integers(of + 1, len(disturbed)))
        at_ms = disturbed[place - 1].arrived_ms
        name = disturbed[of].payload % len(drafts) + len(drafts) * (count + 1)
        disturbed.insert(place, Arrival(*again, at_ms, name))
    assert true_releases(tuple(disturbed), true) == true_releases(tuple(arrivals), true)


@pytest.mark.parametrize("first", [0, 1])
def test_every_arrival_order_of_a_second_call(first: int) -> None:
    """Without the model: all of it is in order, in a run of its own, whichever of its callbacks comes first."""
    one, two = (
        [(first + at, b"%d%07d" % (call, at), 100 * call + at, False, False, at == 0) for at in range(5)]
        for call in (1, 2)
    )
    for shuffled in permutations(two):
        got = released(play(instant([*one, *shuffled])))
        assert [(it.arrival.number, it.order, it.run) for it in got] == [
            (number, "in_order", run) for run in (0, 1) for number in range(first, first + 5)
        ]


def instant(drafts: list[Draft]) -> History:
    """All within the gap timeout."""
    arrivals = stamp(drafts, [1] * len(drafts))
    return History(PLAIN, arrivals, ((),) * (len(drafts) + 1))


@pytest.mark.parametrize("missing", [(), (1,), (3,), (6,), (1, 2), (2, 5), (3, 4), (1, 3, 5)])
def test_every_arrival_order_of_one_call(missing: tuple[int, ...]) -> None:
    """Without the model: whatever the order, the numbers come rising, and the holes are named."""
    numbers = [number for number in range(1, 7) if number not in missing]
    expected, following = [], 1
    for number in numbers:
        hole = tuple(range(following, number))
        expected.append((number, "after_gap" if hole else "in_order", hole))
        following = number + 1
    for shuffled in permutations(numbers):
        history = instant([(number, b"%08d" % number, None, False, False, True) for number in shuffled])
        got = [(one.arrival.number, one.order, one.missing) for one in released(play(history))]
        assert got == expected


SMALL_SESSIONS = {
    "two calls, numbering starts again at one": [(1, 10), (2, 20), (3, 30), (1, 40), (2, 50), (3, 60)],
    "two calls, numbering starts again at zero": [(0, 10), (1, 20), (2, 30), (0, 40), (1, 50), (2, 60)],
    "two calls, the first with a hole": [(1, 10), (2, 20), (4, 30), (1, 40), (2, 50), (6, 60)],
    "timestamps that say nothing": [(1, 10), (2, 10), (3, 10), (1, 10), (2, None), (3, None)],
    "two callbacks of one number, twice": [(1, 10), (2, 20), (2, 21), (3, 30), (3, 30), (4, 40)],
    "a number without its callback, and none at all": [(0, 5), (2, 20), (None, 1), (3, 30), (1, 40), (9, 8)],
    "two calls, and the second's opening is lost": [(1, 10), (2, 20), (3, 30), (2, 50), (3, 60), (4, 70)],
    "a callback again, stamped anew": [(1, 10), (2, 20), (3, 30), (3, 45), (4, 40), (5, 50)],
    "a damaged number, twice": [(1, 10), (2, 20), (2**53 - 1, 20), (3, 30), (2**53 - 1, 40), (4, 40)],
    "numbering that goes far ahead": [(1, 10), (2, 20), (5_000, 30), (5_002, 50), (5_001, 40), (3, 25)],
}


@pytest.mark.parametrize("session", SMALL_SESSIONS.values(), ids=SMALL_SESSIONS.keys())
def test_every_arrival_order_of_a_small_session_agrees_with_the_model(
    session: list[tuple[int | None, int]],
) -> None:
    drafts: list[Draft] = [
        (number, b"%08d" % at, us, False, False, number in (0, 1)) for at, (number, us) in enumerate(session)
    ]
    for shuffled in permutations(drafts):
        history = instant([*shuffled])
        agree(history, play(history))
