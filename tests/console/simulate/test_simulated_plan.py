from collections import Counter, defaultdict
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.console.simulate.plan import (
    DUPLICATE_WINDOW,
    PlanOptions,
    expectation,
    fit_to_rate,
    interleave,
    plan_session,
    plan_sessions,
)
from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.schemas.parameters import parse_parameters

# Each example makes a handful of whole sessions.
FEW = settings(max_examples=40)

shares = st.sampled_from((0.0, 0.05, 0.3, 1.0))
plans = st.builds(
    PlanOptions,
    seed=st.integers(0, 2**32),
    sessions=st.integers(1, 6),
    shuffle=shares,
    window=st.integers(0, 8),
    duplicates=shares,
    losses=shares,
    get=st.sampled_from((0.0, 0.5)),
    json_bodies=st.sampled_from((0.0, 0.5)),
    at_once=st.integers(1, 8),
    session=st.builds(
        SessionOptions,
        first_sequence=st.integers(0, 2),
        recording_sequence=st.sampled_from(("own", "shared")),
        restart_numbering=st.booleans(),
    ),
)


def bytes_of(send):
    return send.method, send.query, send.content_type, send.body


@FEW
@given(plans)
def test_same_seed_same_bytes_in_the_same_order(options):
    def play():
        return [
            (send.session, send.epoch, send.duplicate, *bytes_of(send))
            for send in interleave(plan_sessions(options), options)
        ]

    assert play() == play()


@FEW
@given(plans)
def test_nothing_but_losses_is_missing(options):
    for index in range(options.sessions):
        plan = plan_session(index, options)
        events = make_session(options.seed, index, options.session)
        first = [send.event for send in plan.sends if not send.duplicate]
        assert sorted(map(repr, [*first, *plan.lost])) == sorted(map(repr, events))
        if options.losses == 0:
            assert plan.lost == []
        if options.losses == 1:
            protected = options.session.restart_numbering or options.session.first_sequence == 0
            assert all(protected and event.opens for event in first)


@FEW
@given(plans)
def test_duplicates_are_byte_equal_and_follow_soon(options):
    plan = plan_session(0, options)
    firsts = {}
    for place, send in enumerate(plan.sends):
        key = id(send.event)
        if send.duplicate:
            first_place, first = firsts[key]
            assert bytes_of(send) == bytes_of(first)
            originals = sum(not other.duplicate for other in plan.sends[first_place + 1 : place])
            assert originals <= DUPLICATE_WINDOW
        else:
            assert key not in firsts
            firsts[key] = place, send
    assert plan.duplicates <= len(firsts)
    assert options.duplicates != 1 or plan.duplicates == len(firsts)


@FEW
@given(plans)
def test_displacement_stays_in_the_window_and_never_crosses_events_sent_alone(options):
    plan = plan_session(0, options)
    sent = [send for send in plan.sends if not send.duplicate]
    natural = [e for e in make_session(options.seed, 0, options.session) if e not in plan.lost]
    places = {repr(event): place for place, event in enumerate(natural)}
    for place, send in enumerate(sent):
        assert abs(place - places[repr(send.event)]) <= options.window
    lone = options.session.restart_numbering or options.session.first_sequence == 0
    for place, send in enumerate(sent):
        if send.event.ends_session or (lone and send.event.opens):
            assert places[repr(send.event)] == place
            before = [other.epoch for other in sent[:place]]
            after = [other.epoch for other in sent[place + 1 :]]
            assert all(epoch < send.epoch for epoch in before)
            assert all(epoch > send.epoch for epoch in after)
    epochs = [send.epoch for send in plan.sends]
    assert epochs == sorted(epochs)


def test_shuffled_plan_is_out_of_order():
    plan = plan_session(0, PlanOptions(seed=1, session=SessionOptions(calls_min=3)))
    numbers = [s.event.number for s in plan.sends if not s.duplicate and s.event.lane == "status"]
    assert numbers != sorted(numbers)
    calm = plan_session(0, PlanOptions(seed=1, shuffle=0, duplicates=0))
    assert [send.event for send in calm.sends] == make_session(1, 0, SessionOptions())


@FEW
@given(plans)
def test_requests_say_what_the_event_says(options):
    for send in plan_session(0, options).sends:
        read = parse_parameters(send.method, send.query.encode(), send.content_type, send.body)
        assert read == send.parameters
        said = dict(read.query + read.body) if read.json is None else read.json
        for name, text in send.event.parameters.items():
            assert said[name] in (text, int(text) if text.isdigit() else None)


@FEW
@given(plans)
def test_interleaving_keeps_each_sessions_order_and_the_bound(options):
    alone = [plan_session(index, options) for index in range(options.sessions)]
    together = list(interleave(plan_sessions(options), options))
    by_session = defaultdict(list)
    places = defaultdict(list)
    for place, send in enumerate(together):
        by_session[send.session].append(send)
        places[send.session].append(place)
    for index, plan in enumerate(alone):
        assert [bytes_of(send) for send in by_session[index]] == [bytes_of(send) for send in plan.sends]
    under_way = Counter()
    for spots in places.values():
        under_way.update(range(spots[0], spots[-1] + 1))
        assert all(b - a < 2 * options.at_once for a, b in pairwise(spots))
    assert max(under_way.values(), default=0) <= options.at_once


def test_sessions_are_made_as_they_are_needed():
    options = PlanOptions(seed=1, sessions=10**9, at_once=3)
    made = []

    def watched():
        for plan in plan_sessions(options):
            made.append(plan)
            yield plan

    sends = interleave(watched(), options)
    for _ in range(30):
        next(sends)
    assert len(made) < 10


@FEW
@given(plans, st.floats(0, 10_000))
def test_fit_to_rate_keeps_displacement_below_a_second(options, rate):
    fitted = fit_to_rate(options, rate)
    if rate == 0:
        assert fitted == options
    elif fitted.window:
        assert (fitted.window + 1) * fitted.at_once <= rate
    assert fitted.window <= options.window
    assert 1 <= fitted.at_once <= options.at_once


@FEW
@given(plans)
def test_expectation_is_the_sent_events_in_order_with_every_gap(options):
    plan = plan_session(0, options)
    expected = expectation(plan, options)
    sent = [send.event for send in plan.sends if not send.duplicate]
    shown = expected["status"] + expected["recording"]
    assert Counter((e["event_name"], e["sequence_number"], e["run"]) for e in shown) == Counter(
        (e.event_name, e.number, e.run) for e in sent if e.number is not None
    )
    lost_numbers = [e.number for e in plan.lost if e.number is not None]
    assert set(lost_numbers) >= {number for e in shown for number in e["missing"]}
    assert all((e["order"] == "after_gap") == bool(e["missing"]) for e in shown)
    for lane in ("status", "recording"):
        order = [(e["run"], e["sequence_number"]) for e in expected[lane]]
        assert order == sorted(order)
    assert expected["duplicates"] == plan.duplicates
