"""Order at a receiver that fails three times in ten, while workers are killed.

FORWARD_KILLS=20 makes the long version: one kill for every few hundred events.
"""

import asyncio
import os
import random
from collections import defaultdict
from pathlib import Path

from aiohttp import web
from forward_kit import Received, endpoint, receiving_in_thread, write_config
from process_kit import Fleet, load
from servers import wait_until

KILLS = int(os.environ.get("FORWARD_KILLS", "1"))
SESSIONS, EVENTS = 20 * KILLS, 6
PATIENCE_S = 60.0 + 20 * KILLS


def test_first_arrivals_are_in_order_and_repeats_have_the_same_id(crew: Fleet, tmp_path: Path):
    rng = random.Random(7)
    answered: set[tuple[str, int]] = set()
    statuses = (500, 502, 503, 504)

    async def answer(it: Received) -> web.Response:
        await asyncio.sleep(rng.uniform(0.005, 0.03))
        if rng.random() < 0.3:
            return web.Response(status=rng.choice(statuses))
        answered.add((it.headers["maskline-session"], int(it.headers["maskline-sequence"])))
        return web.Response()

    with receiving_in_thread() as receiver:
        receiver.answer = answer
        config = write_config(tmp_path / "forward.toml", endpoint(receiver.url, timeout_ms=2_000))
        settings = {"handlers": "maskline.handlers.forward", "forward_config": config}
        workers = [crew.launch(**settings) for _ in range(2)]
        for worker in workers:
            worker.until_started()
        events = load(SESSIONS, EVENTS)
        crew.put_all(events)
        for kill in range(KILLS):
            due = len(events) * (kill + 1) // (KILLS + 2)
            wait_until(lambda due=due: len(answered) >= due, within_s=PATIENCE_S, what=f"{due} events")
            workers.pop(0).kill()
            if KILLS > 1:
                workers.append(crew.launch(**settings))
        wait_until(lambda: len(answered) == len(events), within_s=PATIENCE_S, what="every event to be taken")
        crew.until_drained()
        received = list(receiver.received)

    ids: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    arrived: defaultdict[str, list[int]] = defaultdict(list)
    for it in received:
        session, number = it.headers["maskline-session"], int(it.headers["maskline-sequence"])
        ids[session, number].add(it.headers["webhook-id"])
        if number not in arrived[session]:
            arrived[session].append(number)
        assert it.message["delivery"]["sequence_number"] == number
        assert it.message["delivery"]["order"] == "in_order"
    assert answered == set(events)
    assert {len(its) for its in ids.values()} == {1}
    assert len(set.union(*ids.values())) == len(events)
    assert all(numbers == list(range(1, EVENTS + 1)) for numbers in arrived.values())
    assert len(received) > len(events) * 1.2, "failures were met"
    assert not crew.dead_letters()
