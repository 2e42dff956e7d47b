"""The harness gives what a real worker gives, for any input: see `differential_kit`.

DIFFERENTIAL_EXAMPLES=2000 runs so many examples for each setting.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from differential_kit import STEPS_S, Parameters, RealWorker, Scenario, Step, through_file, through_harness
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from maskline.schemas.callback import RawCallback

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "0"))
"""0: a few. An example takes some 50 ms."""
FEW = 15
PHASES = [*Phase] if EXAMPLES else [Phase.explicit, Phase.reuse, Phase.generate]
"""Making an example smaller takes minutes, as each try goes through a worker."""

SETTINGS: list[dict[str, Any]] = [
    {},
    {"late": "dead", "recording_sequence": "shared", "first_sequence": 2, "held_max": 3},
]

OPENINGS = ["SessionFirstPartyInitiated", "SessionVirtualNumberAnswer", "SessionSomethingNew"]
NAMES = ["SessionFirstPartyAnswer", "SessionSecondPartyHangup", "SessionPartiesHangup"]
RECORDINGS = ["SessionRecordingInitiated", "SessionRecordingCompleted"]
UNSEQUENCED = ["SessionPinAuthenticationStatus", "SessionTimeout", "SessionTimeout", "SessionTimeout"]
PLANS = ["0"] * 5 + ["1", "2", "3", "reject", "again"]
ODD_NUMBERS = ["", "null", "x", "-1", "1.5", "2000", "9" * 30]


@st.composite
def lane(draw: st.DrawFn, session: str, *, recording: bool) -> list[dict[str, str]]:
    """One numbering of a session: some runs, in the order in which Plivo numbers them."""
    sent: list[dict[str, str]] = []
    stamp = draw(st.booleans())
    for run in range(draw(st.integers(0, 2))):
        first = draw(st.sampled_from([0, 1, 1, 1, 2]))
        for place in range(draw(st.integers(1, 4))):
            names = RECORDINGS if recording else OPENINGS if place == 0 else NAMES
            one = {
                "EventName": draw(st.sampled_from(names)),
                "SessionUUID": session,
                "SequenceNumber": str(first + place),
                "Plan": draw(st.sampled_from(PLANS)),
            }
            if stamp:
                one["EventTimestamp"] = f"2026-01-05 09:{run:02}:{place:02}"
            sent.append(one)
    return sent


@st.composite
def extras(draw: st.DrawFn, session: str) -> list[Parameters]:
    """Callbacks without a number, with an odd one, and such as cannot be read."""
    name = draw(st.sampled_from([*UNSEQUENCED, *NAMES]))
    one: dict[str, str] = {"EventName": name, "SessionUUID": session, "Plan": draw(st.sampled_from(PLANS))}
    if name in NAMES:
        one["SequenceNumber"] = draw(st.sampled_from(ODD_NUMBERS))
    broken: list[Parameters] = [
        RawCallback("POST", b"", "application/json", b'{"SessionUUID": ', 1, ""),
        {"EventName": "SessionTimeout"},
        {"SessionUUID": session, "SequenceNumber": "1"},
    ]
    return [one] if draw(st.integers(0, 3)) else [draw(st.sampled_from(broken))]


@st.composite
def scenarios(draw: st.DrawFn, prefix: str) -> Scenario:
    """Sessions whose callbacks are shuffled, lost and doubled, and come in some steps."""
    count = draw(st.integers(1, 4))
    steps = [draw(st.sampled_from(STEPS_S)) for _ in range(draw(st.integers(1, 4)))]
    arriving: list[list[Parameters]] = [[] for _ in steps]
    fails_again = False
    for number in range(count):
        session = f"{prefix}-s{number}"
        sent: list[Parameters] = [
            *draw(lane(session, recording=False)),
            *draw(lane(session, recording=True)),
        ]
        for _ in range(draw(st.integers(0, 2))):
            sent += draw(extras(session))
        for place, one in enumerate(sent):
            if isinstance(one, dict) and one.get("Plan") == "again":
                # One at most: where most of what a replay runs fails again, the replay stops itself.
                one["Plan"], fails_again = "reject" if fails_again else "again", True
            usual = place * len(steps) // len(sent)
            fate = draw(st.sampled_from(["usual"] * 6 + ["lost", "doubled", "late", "early"]))
            if fate == "lost":
                continue
            at = usual if fate in ("usual", "doubled") else draw(st.integers(0, len(steps) - 1))
            arriving[at].append(one)
            if fate == "doubled":
                arriving[draw(st.integers(at, len(steps) - 1))].append(one)
    return Scenario(
        [
            Step(after_s, draw(st.permutations(those)) if draw(st.booleans()) else those)
            for after_s, those in zip(steps, arriving, strict=True)
        ],
        draw(st.lists(st.sampled_from(["replay", "replay", "discard", "run again"]), max_size=3)),
    )


@pytest.fixture(scope="module", params=range(len(SETTINGS)), ids=["defaults", "others"])
def real(
    request: pytest.FixtureRequest, redis_server: Any
) -> Iterator[tuple[asyncio.Runner, RealWorker, Any]]:
    chosen = SETTINGS[request.param]
    with redis_server.client() as client, asyncio.Runner() as runner:
        worker = RealWorker(redis_server.url, f"test-differential-{request.param}", client, **chosen)
        runner.run(worker.start())
        yield runner, worker, chosen
        runner.run(worker.stop())


def test_harness_gives_what_a_worker_gives(real: tuple[asyncio.Runner, RealWorker, Any]) -> None:
    runner, worker, chosen = real
    examples = itertools.count()

    @settings(max_examples=EXAMPLES or FEW, deadline=None, phases=PHASES)
    @given(st.data(), st.sampled_from(["at once", "retries wait", "from a file", "crashes"]))
    def same(data: st.DataObject, way: str) -> None:
        prefix = f"e{next(examples)}"
        steps, done_later = data.draw(scenarios("e"))
        renamed = Scenario(
            [Step(step.after_s, [_in_session(one, prefix) for one in step.callbacks]) for step in steps],
            () if way == "from a file" else done_later,
        )
        given_by_worker = runner.run(worker.through(renamed, f"{prefix}-"))
        if way == "from a file":
            replayed = through_file(renamed, f"{prefix}-", **chosen)
        else:
            how = {"retry_waits": way == "retries wait", "crashes": way == "crashes"}
            replayed = through_harness(renamed, f"{prefix}-", **how, **chosen)
        given_by_harness = runner.run(replayed)
        note(f"worker:  {given_by_worker}")
        note(f"harness: {given_by_harness}")
        assert given_by_harness == given_by_worker

    same()


def _in_session(one: Parameters, prefix: str) -> Parameters:
    """The callback in a session that no other example has."""
    if isinstance(one, RawCallback) or "SessionUUID" not in one:
        return one
    return {**one, "SessionUUID": prefix + one["SessionUUID"][1:]}
