"""Keeps the connections to one server open: connects, waits until they are lost, and connects again after a backoff."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import hiredis

from maskline.schemas.errors import MasklineError

RECONNECT_FIRST_S: Final = 0.05
"""A restart of Redis takes less than a second: the first tries are quick."""

RECONNECT_MAX_S: Final = 2.0
"""A node is back within two seconds of Redis; hundreds of nodes that ask twice a second do no harm."""

LOG_AGAIN_S: Final = 60.0
"""Between log lines about the same error, so that the log of an hour's outage shows it wherever it is read."""


async def keep_connected(
    connect: Callable[[], Awaitable[None]],
    wait_until_lost: Callable[[], Awaitable[str]],
    on_unavailable: Callable[[str, Exception | None], None],
    attempted: asyncio.Event,
) -> NoReturn:
    """Stay connected until cancelled.

    `connect()` opens the connections, or raises why it cannot. `wait_until_lost()` returns the reason once they are
    lost. `on_unavailable(reason, error)` is called each time there is no connection, with the error of `connect` if it
    raised one. `attempted` is set after the first try. An error of `connect` that is neither a MasklineError nor a
    reply of Redis is a fault in maskline: it is passed to `on_unavailable`, and raised.
    """
    failures = 0
    while True:
        try:
            await connect()
        except (MasklineError, hiredis.ReplyError) as error:
            on_unavailable(str(error), error)
        except Exception as error:
            on_unavailable(f"a fault in maskline: {type(error).__name__}", None)
            raise
        else:
            attempted.set()
            failures = 0
            on_unavailable(await wait_until_lost(), None)
        finally:
            attempted.set()
        await asyncio.sleep(reconnect_delay_s(failures, random.random()))  # noqa: S311 - spreads load, guards nothing
        failures += 1


def reconnect_delay_s(attempt: int, chance: float) -> float:
    """The wait in seconds before try number `attempt` (0, 1, …): doubled each time up to a bound, half of it random.

    `chance`: a random number from 0 to 1.
    """
    # The exponent is bounded as well: 2.0**1100 is no float any more.
    ceiling = min(RECONNECT_MAX_S, RECONNECT_FIRST_S * 2.0 ** min(attempt, 16))
    return ceiling * (0.5 + 0.5 * chance)
