"""What operators do, and the server that goes away."""

import asyncio
from itertools import pairwise

import pytest
from downstream import WAYS, downstream
from fault_plan import OUTAGE_S, outages
from operations import PAUSED_MIN_S, operations
from servers import free_port

SEEDS = range(100)


@pytest.mark.parametrize("duration_s", [14.0, 90.0, 300.0])
def test_operators_do_everything_in_time_whatever_the_seed(duration_s: float):
    for seed in SEEDS:
        planned = operations(seed, duration_s)
        assert planned == operations(seed, duration_s)
        assert {one.deed for one in planned} == {"pause", "resume", "replay", "discard", "rerun", "mend"}
        assert all(before.at_s <= after.at_s for before, after in pairwise(planned))
        assert planned[-1].at_s < duration_s
        pauses = {one.what: one.at_s for one in planned if one.deed == "pause"}
        resumes = {one.what: one.at_s for one in planned if one.deed == "resume"}
        assert pauses.keys() == resumes.keys() == {"ends", "remote"}
        assert all(at_s + PAUSED_MIN_S <= resumes[handler] for handler, at_s in pauses.items())
        mended_at_s = next(one.at_s for one in planned if one.deed == "mend")
        assert any(one.deed == "replay" and one.at_s < mended_at_s for one in planned)
        assert any(one.deed == "replay" and one.at_s > mended_at_s for one in planned)


def test_server_goes_away_for_a_minute_and_is_back_long_before_the_end():
    for seed in SEEDS:
        planned = outages(seed, 300.0)
        assert max(one.lasts_s for one in planned) == OUTAGE_S
        assert planned[0].at_s + planned[0].lasts_s < planned[1].at_s
        assert planned[1].at_s + planned[1].lasts_s < 0.7 * 300.0
    assert {one.way for seed in SEEDS for one in outages(seed, 300.0)} == set(WAYS)


async def ask(port: int) -> bytes:
    """What the server answers; empty if it refuses or is silent."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(b"tag\n")
        async with asyncio.timeout(0.2):
            return await reader.readline()
    except TimeoutError:
        return b""
    finally:
        writer.close()
        await writer.wait_closed()


async def test_server_is_away_in_each_way_and_comes_back():
    async with downstream(free_port) as it:
        for way, answer in (("refuses", b""), ("errs", b"no\n"), ("hangs", b"")):
            assert await ask(it.port) == b"taken\n"
            async with it.away(way):
                assert await ask(it.port) == answer
        assert await ask(it.port) == b"taken\n"
        assert (it.taken, it.refused) == (4, 2)
