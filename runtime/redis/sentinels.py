"""Which server is the primary, by the word of several Sentinels.

One Sentinel may be cut off, or have slept through a failover, and name a primary that is none any more: what is written
there is lost. So all are asked at once, which takes a round trip, and one names it alone only where nobody contradicts.

| what they say | then |
| --- | --- |
| a majority of all configured names one server | it is the primary |
| the same, but another of them has a newer configuration with another server | wait: a failover spreads |
| no majority, though others answer | wait until they agree |
| all that can be reached name one server, but are no majority | it is, if it has a replica |

Some may name it by its name, others by an address (`announce-hostnames`): what leads to one address is one server.
The last is for the day when most Sentinels are down. A primary that is cut off with a few of them has no replica left,
and is not followed. Whatever they say, the server itself is asked as well whether it is a primary
(`runtime.redis.connect`).
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.redis.dial import refused
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError

SENTINELS_TIMEOUT_S: Final = 3.0
"""For all of them. A silent one is waited for only where the others do not suffice."""
GRACE_S: Final = 0.1
"""How long those are waited for whose word would change nothing but by a newer epoch: a round trip, mostly."""
EPOCH_TIMEOUT_S: Final = 0.5
"""The epoch comes with the address. Where it does not, it is unknown, and the address is what counts."""
NAMES_TIMEOUT_S: Final = 0.5
"""For looking up the names of servers where Sentinels seem to contradict each other."""

NO_EPOCH: Final = -1


class SentinelReply(NamedTuple):
    """What a Sentinel says."""

    sentinel: Server
    primary: Server
    epoch: int
    """Of its configuration, greater with every failover; NO_EPOCH where it does not tell."""


class FoundPrimary(NamedTuple):
    server: Server
    agreed: bool
    """A majority of the Sentinels names it."""


class _UselessError(RedisUnavailableError):
    """The Sentinel was reached and has no answer for us."""


async def find_primary(
    sentinels: Sequence[Server], service: str, connect: Callable[[Server], Awaitable[PipelinedConnection]]
) -> FoundPrimary:
    """Ask all of them.

    Raises RedisUnavailableError where they name none, RedisRefusesError where some refuse to tell.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SENTINELS_TIMEOUT_S
    tasks = {asyncio.ensure_future(_ask(one, service, connect)): one for one in sentinels}
    pending, answers, failures = set(tasks), list[SentinelReply](), list[RedisUnavailableError]()
    try:
        while pending and (left_s := deadline - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    answers.append(task.result())
                except RedisUnavailableError as error:
                    failures.append(error)
            if by_majority(answers, len(sentinels)) is not None:
                deadline = min(deadline, loop.time() + GRACE_S)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    answers = await _in_one_form(answers)
    if (agreed := by_majority(answers, len(sentinels))) is not None:
        return FoundPrimary(agreed, agreed=True)
    if not any(isinstance(error, (_UselessError, RedisRefusesError)) for error in failures):
        named = {answer.primary for answer in answers}
        if len(named) == 1 and len(answers) <= len(sentinels) // 2:
            return FoundPrimary(named.pop(), agreed=False)
    raise _nobody(service, answers, failures, [tasks[task] for task in pending])


def by_majority(answers: Sequence[SentinelReply], configured: int) -> Server | None:
    """The server that more than half of those configured name, if nobody knows better."""
    votes = Counter(answer.primary for answer in answers)
    for server, count in votes.items():
        if count > configured // 2:
            epoch = max(answer.epoch for answer in answers if answer.primary == server)
            newer = any(answer.epoch > epoch for answer in answers if answer.primary != server)
            return None if newer and epoch != NO_EPOCH else server
    return None


async def _in_one_form(answers: Sequence[SentinelReply]) -> list[SentinelReply]:
    """The same answers, each server in the form in which most, or the first of them, name it."""
    named = [server for server, _ in Counter(answer.primary for answer in answers).most_common()]
    if len(named) < 2:
        return list(answers)
    addresses = await asyncio.gather(*map(_addresses, named))
    forms: dict[Server, Server] = {}
    for place, server in enumerate(named):
        same = (one for one, there in zip(named, addresses, strict=True) if there & addresses[place])
        forms[server] = next(same, server)
    return [answer._replace(primary=forms[answer.primary]) for answer in answers]


async def _addresses(server: Server) -> set[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(NAMES_TIMEOUT_S):
            infos = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        return set()
    return {(str(address[0]).removeprefix("::ffff:"), server.port) for *_, address in infos}


async def _ask(
    sentinel: Server, service: str, connect: Callable[[Server], Awaitable[PipelinedConnection]]
) -> SentinelReply:
    connection = await connect(sentinel)
    try:
        # Two requests that go out together: whoever does not answer the second has answered the first.
        address = connection.send(
            pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), 1, timeout_s=SENTINELS_TIMEOUT_S
        )
        state = connection.send(pack("SENTINEL", "MASTER", service), 1, timeout_s=SENTINELS_TIMEOUT_S)
        (reply,) = await address
        if isinstance(reply, hiredis.ReplyError):
            error = refused(f"the Sentinel at {sentinel}", str(reply))
            raise error if isinstance(error, RedisRefusesError) else _UselessError(str(error))
        if not reply:
            raise _UselessError(f"the Sentinel at {sentinel} knows no {service}")
        try:
            primary = Server(reply[0].decode(), int(reply[1]))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise _UselessError(f"the Sentinel at {sentinel} answers no address") from None
        return SentinelReply(sentinel, primary, await _epoch(state))
    finally:
        connection.close()


async def _epoch(state: asyncio.Future[list[Any]]) -> int:
    try:
        async with asyncio.timeout(EPOCH_TIMEOUT_S):
            (reply,) = await state
        return int(dict(zip(reply[::2], reply[1::2], strict=True))[b"config-epoch"])
    except (TimeoutError, RedisUnavailableError, ValueError, TypeError, LookupError):
        return NO_EPOCH  # an error, say, to a user who may not ask


def _nobody(
    service: str,
    answers: Sequence[SentinelReply],
    failures: Sequence[RedisUnavailableError],
    silent: Sequence[Server],
) -> RedisUnavailableError:
    said = [f"{answer.sentinel} names {answer.primary}" for answer in answers]
    said += [str(error) for error in failures]
    said += [f"{sentinel} is silent" for sentinel in silent]
    refuses = any(isinstance(error, RedisRefusesError) for error in failures)
    kind = RedisRefusesError if refuses else RedisUnavailableError
    return kind(f"the Sentinels do not agree on the primary of {service}: {'; '.join(said)}")
