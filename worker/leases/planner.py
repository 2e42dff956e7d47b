"""Plans a worker's leases: what the next request asks for, what follows from the reply, when to send the next. Pure.

It takes readings of one clock (`lease_clock`) and random numbers. `worker.leases.renewal` sends the requests,
`worker.leases.manager` carries out the plans.

Rules:

- One request sends the heartbeat and renews all leases, so that both lapse together when the worker dies.
- A lease counts from before its request was sent, and is trusted for a little less than its life (TRUSTED_PART).
- Only a worker below its share probes other leases, and only once it knows the live workers. It starts at its own place
  in the ring and probes more each time it finds too few, so that a thousand workers that start together do not each
  read every lease.
- A partition that is being released is still renewed; nothing new starts in it, and it does not count as owned.
- If a server does not answer, its leases lapse by the clock, and the live workers stay as last seen.

When the next request is sent:

| what happened | the next request |
| --- | --- |
| a server did not answer | RETRY_PART of a lease |
| below its share, not all leases seen or just tried to take some | early: DELAY_MIN_PART + up to EARLY_SPREAD_PART |
| below its share, and a worker that is gone still holds a lease | early |
| the same EARLY_REQUESTS_MAX times running, and nothing gained | as if nothing had happened |
| another worker's heartbeat lapses before the next renewal | right after it does, up to LAPSE_SPREAD_PART later |
| nothing | a third of a lease, up to a tenth less |
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from types import MappingProxyType
from typing import Final, NamedTuple

from maskline.worker.leases.balance import fair_share, rebalance

RENEWALS_PER_LIFE: Final = 3
"""Two requests may be lost before a lease lapses."""

TRUSTED_PART: Final = 0.95
"""How much of a lease's life its owner counts on. So the clocks of worker and server may differ by a twentieth of a
lease over its life (their rates by 5 %, or the server's clock may leap 250 ms of 5 s) before an owner could start a
handler that another owner has started too. Their commits are fenced whatever the clocks do."""

DELAY_MIN_PART: Final = 0.01
"""The least wait after a reply, in parts of a lease: 50 ms of 5 s, some round trips."""

EARLY_SPREAD_PART: Final = 0.02
"""Spreads the next tries of workers that raced for the same partitions."""

LAPSE_SPREAD_PART: Final = 0.04
"""All workers know when a dead one's heartbeat lapses: a thousand requests are then spread over 200 ms of 5 s."""

RETRY_PART: Final = 0.1
"""More than three tries fit between a failed renewal and the end of the lease."""

EARLY_REQUESTS_MAX: Final = 10
"""Early requests in a row that gained nothing. A worker that seems gone, since it is cut off from the server of the
heartbeats only, may hold a lease for long; the others must not flood the servers meanwhile."""

PROBE_FIRST: Final = 1024
"""Leases probed in the first try: all there are in most installations, and a millisecond of Redis's time."""

PROBE_GROWTH: Final = 4

ACQUIRE_MAX: Final = 1024
"""Leases that one plan tries to take: opening partitions must not block the loop past the next renewal."""

_NONE: Final[Mapping[int, object]] = MappingProxyType({})


class RenewalRequest(NamedTuple):
    """What one request asks the servers."""

    heartbeat: bool
    renew: Mapping[int, int]
    """Fencing tokens of the leases to renew, by partition."""
    probe: Sequence[int]
    """Partitions to probe: which worker holds the lease?"""


class RenewalReply(NamedTuple):
    """The replies to a request. The leases lie on several servers, so it may have all, some or none of them."""

    live: Collection[str] | None = None
    """The live workers; None if the server of the heartbeats did not answer, or was not asked."""
    next_lapse_ms: int | None = None
    """Milliseconds until the next heartbeat of another worker lapses; None if there is no other."""
    kept: Mapping[int, bool] = _NONE  # type: ignore[assignment]
    """By partition, of the renewed leases whose server answered: whether the lease is still ours."""
    taken: Mapping[int, str] = _NONE  # type: ignore[assignment]
    """By partition, of those probed: the worker that holds the lease."""
    free: Collection[int] = ()
    """Of the partitions probed: those that nobody holds."""


class LeasePlan(NamedTuple):
    """What the worker does next about its leases. Partitions are given by number."""

    lost: list[int]
    """Held by another worker now, or by none. The planner has forgotten them."""
    resume: list[int]
    """Their leases had lapsed by the clock and are held again: the sessions set aside may start."""
    release: list[int]
    """Give them back when the handlers under way have ended, then call `forget`."""
    acquire: list[int]
    """Try to take them, then call `acquired` for those that were granted."""
    next_s: float
    """Seconds from now to the next request."""


class _Lease:
    __slots__ = ("releasing", "token", "until")

    def __init__(self, token: int, until: float, releasing: bool) -> None:
        self.token = token
        self.until = until
        self.releasing = releasing


class LeasePlanner:
    """The leases of one worker. Times are seconds of one monotonic clock; `chance` is a random number from 0 to 1."""

    def __init__(self, worker_id: str, partitions: int, lease_s: float) -> None:
        self._worker_id = worker_id
        self._partitions = partitions
        self._lease_s = lease_s
        self._leases: dict[int, _Lease] = {}
        self._live: tuple[str, ...] = ()
        self._share = 0
        self._probe_from = 0.0
        self._probe_count = PROBE_FIRST
        self._early_requests = 0
        self._draining = False

    @property
    def live(self) -> tuple[str, ...]:
        """The live workers as last seen, sorted, this one among them; empty before the first reply."""
        return self._live

    @property
    def owned(self) -> Collection[int]:
        """The partitions whose leases are ours, those being released among them."""
        return self._leases.keys()

    def lease_until(self, partition: int) -> float:
        """Until when the lease is surely held; 0 if it is not ours."""
        lease = self._leases.get(partition)
        return lease.until if lease else 0.0

    def may_start(self, partition: int, now: float) -> bool:
        """Whether a handler may start: the lease is surely held, and the partition is not being released."""
        lease = self._leases.get(partition)
        return lease is not None and not lease.releasing and now < lease.until

    def early_delay_s(self, chance: float) -> float:
        """The wait before an early request, as after a lease was lost between two requests."""
        return self._lease_s * (DELAY_MIN_PART + EARLY_SPREAD_PART * chance)

    # What happens to leases

    def acquired(self, partition: int, token: int, sent_at: float) -> None:
        """Add a lease that was granted with this fencing token, by a command sent at `sent_at`."""
        self._leases[partition] = _Lease(token, self._trusted_until(sent_at), self._draining)
        self._early_requests = 0

    def forget(self, partition: int) -> None:
        """Remove a lease that was given back, or whose commit was fenced off."""
        self._leases.pop(partition, None)

    def drain(self) -> None:
        """Stop: from now on send no heartbeat, take nothing, and release everything."""
        self._draining = True
        for lease in self._leases.values():
            lease.releasing = True

    # Requests and plans

    def request(self, now: float) -> RenewalRequest:
        """The request to send to the servers now."""
        renew = {partition: lease.token for partition, lease in self._leases.items()}
        probes = not self._draining and now >= self._probe_from and self._missing() > 0
        return RenewalRequest(not self._draining, renew, self._next_probes() if probes else ())

    def plan(
        self, request: RenewalRequest, reply: RenewalReply, *, sent_at: float, now: float, chance: float
    ) -> LeasePlan:
        """The plan that follows from the reply to a request; the reply is `RenewalReply()` if the connection was lost.

        `sent_at` was read before the request was sent, `now` after the reply had come.
        """
        lost, resume = self._apply_renewals(request, reply.kept, sent_at, now)
        if request.heartbeat and reply.live is not None:
            all_lost = bool(request.renew) and len(lost) == len(request.renew)
            self._update_live(reply.live, all_lost, now)
        if self._draining or not self._live:
            return LeasePlan(lost, resume, [], [], self._next_s(request, reply, chance, early=False))
        release, acquire, early = self._rebalance(request, reply, chance)
        early = early and now >= self._probe_from
        return LeasePlan(lost, resume, release, acquire, self._next_s(request, reply, chance, early=early))

    def _trusted_until(self, sent_at: float) -> float:
        return sent_at + self._lease_s * TRUSTED_PART

    def _staying(self) -> list[int]:
        return [partition for partition, lease in self._leases.items() if not lease.releasing]

    def _missing(self) -> int:
        """How far below its share the worker is; negative if above. The share is 0 until it knows who lives."""
        return self._share - len(self._staying())

    def _next_probes(self) -> list[int]:
        """The partitions to probe, from the worker's own place in the ring on."""
        each, rest = divmod(self._partitions, len(self._live))
        rank = bisect_left(self._live, self._worker_id)
        start = rank * each + min(rank, rest)
        ring = chain(range(start, self._partitions), range(start))
        return list(islice((number for number in ring if number not in self._leases), self._probe_count))

    def _apply_renewals(
        self, request: RenewalRequest, kept: Mapping[int, bool], sent_at: float, now: float
    ) -> tuple[list[int], list[int]]:
        """Prolong or remove the leases of the request. Returns those lost, and those to resume."""
        lost, resume = [], []
        for partition, token in request.renew.items():
            lease = self._leases.get(partition)
            if lease is None or lease.token != token or partition not in kept:
                continue
            if not kept[partition]:
                del self._leases[partition]
                lost.append(partition)
                continue
            lapsed, lease.until = lease.until <= now, max(lease.until, self._trusted_until(sent_at))
            if lapsed and self.may_start(partition, now):
                resume.append(partition)
        return lost, resume

    def _update_live(self, live: Collection[str], all_lost: bool, now: float) -> None:
        seen = {*live, self._worker_id}
        if seen == {*self._live}:
            return
        before, self._live = self._live, tuple(sorted(seen))
        self._share = fair_share(self._worker_id, self._live, self._partitions)
        self._early_requests = 0
        if all_lost and len(self._live) == 1 < len(before):
            # Redis has lost its data, and this worker is the first one back. It would take everything, and give it back
            # as the others return, which they all do before a third of a lease is over.
            self._probe_from = now + self._lease_s / RENEWALS_PER_LIFE

    def _rebalance(
        self, request: RenewalRequest, reply: RenewalReply, chance: float
    ) -> tuple[list[int], list[int], bool]:
        """The partitions to give back, those to take, and whether the next request is sent early."""
        missing = self._missing()
        if missing <= 0:
            self._probe_count, self._early_requests = PROBE_FIRST, 0
            if missing == 0:
                return [], [], False
        taken = {**reply.taken, **dict.fromkeys(self._leases, self._worker_id)}
        free = set(reply.free).difference(self._leases)
        all_seen = len(taken) + len(free) == self._partitions
        probed = (
            None if all_seen else [number for number in request.probe if number in free or number in taken]
        )
        release, acquire = rebalance(
            self._worker_id,
            self._live,
            self._staying(),
            taken,
            self._partitions,
            probed=probed,
            spread=chance,
        )
        for partition in release:
            self._leases[partition].releasing = True
        if missing < 0:
            return release, [], False
        if request.probe and not all_seen:
            self._probe_count = min(self._probe_count * PROBE_GROWTH, self._partitions)
        return [], acquire[:ACQUIRE_MAX], bool(acquire) or not all_seen or self._held_by_dead(reply.taken)

    def _held_by_dead(self, taken: Mapping[int, str]) -> bool:
        """Whether a worker that is not live holds a lease, or this one holds a lease whose reply was lost."""
        return not {*taken.values()} <= {*self._live} - {self._worker_id}

    def _next_s(self, request: RenewalRequest, reply: RenewalReply, chance: float, *, early: bool) -> float:
        unanswered = (
            (request.heartbeat and reply.live is None)
            or len(reply.kept) < len(request.renew)
            or len(reply.taken) + len(reply.free) < len(request.probe)
        )
        if unanswered:
            return self._lease_s * RETRY_PART * (0.75 + 0.5 * chance)
        if early and self._early_requests < EARLY_REQUESTS_MAX:
            self._early_requests += 1
            return self.early_delay_s(chance)
        next_s = self._lease_s / RENEWALS_PER_LIFE * (0.9 + 0.1 * chance)
        if reply.next_lapse_ms is None:
            return next_s
        spread_s = self._lease_s * (DELAY_MIN_PART + LAPSE_SPREAD_PART * chance)
        return min(next_s, reply.next_lapse_ms / 1000 + spread_s)
