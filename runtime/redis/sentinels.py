"""Finds the primary by asking several Sentinels.

One Sentinel may be cut off, or have missed a failover, and name a server that is no longer the primary: what is written
there is lost. So all are asked at once, which takes one round trip, and a minority is believed only if no other
Sentinel contradicts it.

| what the Sentinels reply | then |
| --- | --- |
| a majority of all configured ones names one server | it is the primary |
| the same, but another one has a newer configuration with another server | wait: a failover is spreading |
| no majority, though several reply | wait until they agree |
| all that can be reached name one server, but they are no majority | it is the primary, if it has a replica |

Some may give a host name, others an address (`announce-hostnames`): names that lead to one address are one server. The
last row is for the day when most Sentinels are down. A primary that is cut off together with a few of them has no
replica left, and is not used. In any case the server itself is asked whether it is a primary
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
"""For all of them together. A silent one is waited for only if the others do not suffice."""
GRACE_S: Final = 0.1
"""Once a majority agrees, how long the others are waited for, as one may have a newer epoch: mostly a round trip."""
EPOCH_TIMEOUT_S: Final = 0.5
"""The epoch usually comes with the address. If not, it is unknown, and the address alone counts."""
NAMES_TIMEOUT_S: Final = 0.5
"""For resolving the names of servers where Sentinels seem to contradict each other."""

NO_EPOCH: Final = -1


class SentinelReply(NamedTuple):
    """What one Sentinel replied."""

    sentinel: Server
    primary: Server
    epoch: int
    """Of its configuration, greater with every failover; NO_EPOCH where it is not known."""


class FoundPrimary(NamedTuple):
    """The primary, by what the Sentinels replied."""

    server: Server
    agreed: bool
    """A majority of the Sentinels names it."""


class _NoPrimaryNamedError(RedisUnavailableError):
    """The Sentinel was reached, but names no primary."""


async def find_primary(
    sentinels: Sequence[Server], service: str, connect: Callable[[Server], Awaitable[PipelinedConnection]]
) -> FoundPrimary:
    """Ask all `sentinels` for the primary of `service`, each by a connection that `connect` opens.

    Raises RedisUnavailableError if they name none or do not agree, RedisRefusesError if some refuse to reply.
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
    answers = await _unify_names(answers)
    if (agreed := by_majority(answers, len(sentinels))) is not None:
        return FoundPrimary(agreed, agreed=True)
    if not any(isinstance(error, (_NoPrimaryNamedError, RedisRefusesError)) for error in failures):
        named = {answer.primary for answer in answers}
        if len(named) == 1 and len(answers) <= len(sentinels) // 2:
            return FoundPrimary(named.pop(), agreed=False)
    raise _no_primary(service, answers, failures, [tasks[task] for task in pending])


def by_majority(answers: Sequence[SentinelReply], configured: int) -> Server | None:
    """The server that more than half of the `configured` Sentinels name, unless another has a newer epoch. Pure."""
    votes = Counter(answer.primary for answer in answers)
    for server, count in votes.items():
        if count > configured // 2:
            epoch = max(answer.epoch for answer in answers if answer.primary == server)
            newer = any(answer.epoch > epoch for answer in answers if answer.primary != server)
            return None if newer and epoch != NO_EPOCH else server
    return None


async def _unify_names(answers: Sequence[SentinelReply]) -> list[SentinelReply]:
    """The same answers, with one form for each server: the one that most, or the first of them, use."""
    named = [server for server, _ in Counter(answer.primary for answer in answers).most_common()]
    if len(named) < 2:
        return list(answers)
    addresses = await asyncio.gather(*map(_resolve, named))
    forms: dict[Server, Server] = {}
    for place, server in enumerate(named):
        same = (one for one, there in zip(named, addresses, strict=True) if there & addresses[place])
        forms[server] = next(same, server)
    return [answer._replace(primary=forms[answer.primary]) for answer in answers]


async def _resolve(server: Server) -> set[tuple[str, int]]:
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
        # Two requests sent together: a Sentinel that does not answer the second has answered the first.
        address = connection.send(
            pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), 1, timeout_s=SENTINELS_TIMEOUT_S
        )
        state = connection.send(pack("SENTINEL", "MASTER", service), 1, timeout_s=SENTINELS_TIMEOUT_S)
        (reply,) = await address
        if isinstance(reply, hiredis.ReplyError):
            error = refused(f"the Sentinel at {sentinel}", str(reply))
            raise error if isinstance(error, RedisRefusesError) else _NoPrimaryNamedError(str(error))
        if not reply:
            raise _NoPrimaryNamedError(f"the Sentinel at {sentinel} knows no {service}")
        try:
            primary = Server(reply[0].decode(), int(reply[1]))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise _NoPrimaryNamedError(f"the Sentinel at {sentinel} answers no address") from None
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


def _no_primary(
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
