"""An outage of Redis disturbs no order: two ingest nodes, one of which drains slowly, and a worker that waits for both.

What stands in the stream before the outage has outlasted its gap timeout when Redis is back. Of what comes meanwhile a
part lies in the spool of the node that drains slowly, for several gap timeouts.
"""

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest
from example_counts import LONG
from process_kit import PATIENCE_S, Fleet, by_session
from servers import wait_until
from system_kit import ingest, post

GAP_TIMEOUT_MS = 500
SESSIONS = 12
OTHERS = 60
"""Callbacks that the slow node drains first."""
DRAIN_PER_S = 20
"""It is at it for three seconds, which is more than SETTLE_MS would explain away with the gap timeout."""

pytestmark = [pytest.mark.server, pytest.mark.storage]

Callback = tuple[str, int | None]


def send(url: str, *callbacks: Callback) -> None:
    """One after the other; those without a number are SessionTimeouts."""

    async def play() -> None:
        async with aiohttp.ClientSession() as client:
            for session, number in callbacks:
                event = "SessionFirstPartyRinging" if number is not None else "SessionTimeout"
                assert await post(client, url, session, number, event) == 200

    asyncio.run(play())


def spooled(crew: Fleet, node: str) -> int:
    """How many callbacks a node has spooled, by the notices that stand in Redis."""
    return sum(
        any(f":{crew.directory.resolve()}/{node}/" in fields[b"node"].decode() for _, fields in notices)
        for number in range(crew.partitions)
        for notices in [crew.client.xrange(crew.keys.spooled(number))]
    )


@pytest.mark.parametrize("seed", [1, 2] if LONG else [1])
def test_events_in_the_spools_of_two_nodes_are_handled_in_order(
    own_crew: Fleet, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(f"{seed}:outage")
    sessions = [f"s{number}" for number in range(SESSIONS)]
    before = [(session, number) for session in sessions for number in (1, 3)]
    with (
        ingest(own_crew, name="quick", spool_dir=tmp_path / "quick") as quick,
        ingest(own_crew, name="slow", spool_dir=tmp_path / "slow", spool_drain_per_s=DRAIN_PER_S) as slow,
    ):
        worker = own_crew.start(gap_timeout_ms=GAP_TIMEOUT_MS)
        # Those that have 3 already wait for 2 while Redis is away; the others get 3 by the quick node afterwards.
        stands = {session: rng.random() < 0.5 for session in sessions}
        send(quick, *[(session, number) for session, number in before if number == 1 or stands[session]])
        own_crew.until_calls(SESSIONS)
        own_crew.server.kill()
        others = [(f"o{number}", 1) for number in range(OTHERS)]
        missing = [(session, 2) for session in rng.sample(sessions, SESSIONS)]
        send(slow, *others, *missing)
        own_crew.server.start()
        own_crew.client = own_crew.server.client()
        wait_until(lambda: spooled(own_crew, "slow"), within_s=PATIENCE_S, what="the slow node to say so")
        rest: list[Callback] = [(session, 3) for session in sessions if not stands[session]]
        rest += [(session, None) for session in sessions]
        send(quick, *rest)
        own_crew.until_calls(4 * SESSIONS + OTHERS)
        own_crew.until_drained()
        handled = by_session(own_crew.calls())
        for session in sessions:
            assert [(call.number, call.order) for call in handled[session]] == [
                *((number, "in_order") for number in (1, 2, 3)),
                (None, "unsequenced"),
            ]
        assert worker.metric("spools_given_up_total") == 0
        assert worker.metric("sessions_awaiting_spools") == 0
