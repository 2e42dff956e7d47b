"""What `simulate --expect` promises is what the worker's own reorderer makes of the plan."""

from collections import defaultdict

from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskline.console.simulate.plan import PlanOptions, expectation, plan_session
from maskline.console.simulate.sessions import SessionOptions
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import decode_event
from maskline.schemas.events import MAY_OPEN_CALL, MAY_OPEN_RECORDING, RecordingEvent
from maskline.worker.ordering.reorder import Arrival, Duplicate, Policy, SessionOrder

STEP_MS = 100
"""Between two arrivals: a displaced callback is there long before the gap timeout."""


def arrival_of(send, place, *, shared):
    event, fingerprint = decode_event(
        RawCallback(send.method, send.query.encode(), send.content_type, send.body, 0, "")
    )
    return Arrival(
        number=event.sequence_number,
        fingerprint=fingerprint,
        timestamp_us=int(event.event_timestamp.timestamp() * 1_000_000),
        recording=isinstance(event, RecordingEvent) and not shared,
        ends_session=event.event_name == "SessionTimeout",
        may_open=type(event) in (MAY_OPEN_CALL | MAY_OPEN_RECORDING),
        arrived_ms=place * STEP_MS,
        payload=event.event_name,
    )


@settings(max_examples=examples(150))
@given(
    seed=st.integers(0, 2**32),
    shuffle=st.sampled_from((0.0, 0.3, 1.0)),
    window=st.integers(0, 6),
    duplicates=st.sampled_from((0.0, 0.3, 1.0)),
    losses=st.sampled_from((0.0, 0.1, 0.4)),
    calls=st.integers(1, 4),
    first_sequence=st.integers(0, 1),
    recording_sequence=st.sampled_from(("own", "shared")),
    restart=st.booleans(),
)
# The second call has no recording: the third starts the second run of that lane.
@example(1, 0.3, 4, 0.3, 0.1, 4, 0, "own", True)
def test_the_reorderer_agrees(
    seed, shuffle, window, duplicates, losses, calls, first_sequence, recording_sequence, restart
):
    options = PlanOptions(
        seed=seed,
        shuffle=shuffle,
        window=window,
        duplicates=duplicates,
        losses=losses,
        session=SessionOptions(
            calls_max=calls,
            first_sequence=first_sequence,
            recording_sequence=recording_sequence,
            restart_numbering=restart,
        ),
    )
    plan = plan_session(0, options)
    if not plan.sends:
        return
    policy = Policy(gap_timeout_ms=5_000, first_sequence=1, held_max=256)
    session = SessionOrder()
    outcomes = []
    for place, send in enumerate(plan.sends):
        outcomes += session.arrive(arrival_of(send, place, shared=recording_sequence == "shared"), policy)
    outcomes += session.expire(10**9, policy)
    assert session.held == 0

    expected = expectation(plan, options)
    seen = defaultdict(list)
    for outcome in outcomes:
        if isinstance(outcome, Duplicate):
            continue
        arrival = outcome.arrival
        if arrival.number is None:
            seen["unsequenced"].append(arrival.payload)
            continue
        seen["recording" if arrival.recording else "status"].append(
            {
                "event_name": arrival.payload,
                "sequence_number": arrival.number,
                "run": outcome.run,
                "order": outcome.order,
                "missing": list(outcome.missing),
            }
        )
    for lane in ("status", "recording", "unsequenced"):
        assert seen[lane] == expected[lane]
    assert sum(isinstance(outcome, Duplicate) for outcome in outcomes) == expected["duplicates"]
