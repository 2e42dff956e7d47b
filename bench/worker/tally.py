"""Called by the handlers of every consumer: counts events, and reports counts to the benchmark.

Environment: BENCH_TALLY, the path of a datagram socket; BENCH_TALLY_EVERY, after how many events to report;
BENCH_PAUSE, how long handlers wait: not at all, `1ms` each, or `slow`, 50 ms in the sessions whose names begin with
SLOW_PREFIX.
"""

import asyncio
import os
import socket
import time
from functools import cache
from itertools import count

PAUSE_S = 0.001
SLOW_S = 0.05
SLOW_PREFIX = "slow"

pauses = os.environ.get("BENCH_PAUSE", "")
_every = int(os.environ.get("BENCH_TALLY_EVERY", "0"))
_numbers = count(1)


def handled() -> None:
    """Count one event."""
    number = next(_numbers)
    if number % _every == 0:
        _socket().sendto(b"%d %d" % (number, time.monotonic_ns()), os.environ["BENCH_TALLY"])


@cache
def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


async def pause(session: str) -> bool:
    """Wait as BENCH_PAUSE says; False for events of slow sessions, which do not count."""
    if pauses == "1ms":
        await asyncio.sleep(PAUSE_S)
        return True
    if session.startswith(SLOW_PREFIX):
        await asyncio.sleep(SLOW_S)
        return False
    return True
