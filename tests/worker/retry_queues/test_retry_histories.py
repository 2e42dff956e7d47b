"""Any interleaving of success, failure, Reject, Retry, giving up, pause, replay, discard, crash and clean stop.

Each handler's sequence of each session is the model's: in order, every try counted, nothing left out, nothing twice
without a crash. See `retry_model` and `retry_histories_kit`.
"""

import asyncio
import uuid
from collections.abc import Sequence

import pytest
import redis.asyncio
from example_counts import LONG
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from retry_histories_kit import HANDLERS, QUICK, SESSIONS, Step, World

CRASHES_MAX = 2
"""In one history. An event that was under way at every one of three crashes would go into a sandbox."""

FATES = st.sampled_from(["", "", "", "s", "s", "fs", "f", "f", "w", "ff", "fw", "r", "fr", "F", "R"])
PUTS = st.builds(
    lambda session, fates: Step("put", (session, fates)),
    st.sampled_from(SESSIONS),
    st.lists(st.fixed_dictionaries(dict.fromkeys(HANDLERS, FATES)), min_size=1, max_size=4),
)
HANDLER = st.sampled_from(HANDLERS)
MS = st.integers(0, 12)
STEPS = st.one_of(
    PUTS,
    PUTS,
    st.builds(Step, st.sampled_from(["run", "crash", "crash", "stop"]), MS),
    st.builds(Step, st.sampled_from(["pause", "resume"]), HANDLER),
    st.builds(Step, st.sampled_from(["replay", "replay", "discard"]), st.none() | HANDLER),
    st.sampled_from([Step("settle"), Step("settle"), Step("mend")]),
)


def bounded(steps: Sequence[Step]) -> list[Step]:
    """The history with its first crashes alone; the others are clean stops."""
    crashes = 0
    kept: list[Step] = []
    for step in steps:
        crashes += step.do == "crash"
        kept.append(Step("stop", step.what) if step.do == "crash" and crashes > CRASHES_MAX else step)
    return kept


HISTORIES = st.lists(STEPS, min_size=6, max_size=20).map(bounded)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(f"maskline.worker.{name}", value)


@settings(
    max_examples=15 if LONG else 5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    # Not shrunk: that takes minutes, as what happens depends on time. A failure says which history it was.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(HISTORIES, min_size=1, max_size=12))
async def test_each_handlers_sequence_is_the_models(redis_server, namespace, quick, histories):
    """Several beside each other, as most of their time is waiting."""
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        worlds = [World(redis_server.url, f"{namespace}-{uuid.uuid4().hex[:8]}", client) for _ in histories]
        played = (world.play(history) for world, history in zip(worlds, histories, strict=True))
        for result in await asyncio.gather(*played, return_exceptions=True):
            if result is not None:
                raise result
