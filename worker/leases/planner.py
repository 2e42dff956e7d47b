"""What a worker knows and decides about its leases: what the next trip asks, what follows from the replies, when to
go again. Pure: it is given readings of one clock (`lease_clock`) and random numbers, and does nothing by itself.

Rules:

- One trip says that the worker lives and renews all it owns, so that both lapse together when it dies.
- A lease counts from before its request was sent, and is trusted for a little less than its life (TRUSTED_PART).
- Only a worker below its share looks for free partitions, and only once it knows who lives. It begins at its own
  place in the ring and looks at more each time it finds too few, so that a thousand workers that start together do
  not each read every lease.
- A partition that is on its way back is still renewed; nothing new starts in it, and it counts as gone.
- What nobody answered is not known: those leases lapse by the clock, and the live workers stay as last seen.

When the next trip goes:

| what happened | the next trip |
| --- | --- |
| a server did not answer | RETRY_PART of a lease |
| below its share and not all leases seen, or just reached for some | soon: FLOOR_PART and up to SOON_SPREAD_PART more |
| below its share, and somebody who is gone still holds a lease | soon |
| the same HURRIES_MAX times running, and nothing gained | as if nothing had happened |
| another's heartbeat lapses before the next renewal | right after it does, up to LAPSE_SPREAD_PART later |
| nothing | a third of a lease, up to a tenth less |
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from types import MappingProxyType
from typing import Final, NamedTuple

from maskline.worker.leases.balance import plan, share

RENEWALS_PER_LIFE: Final = 3
"""Two trips may be lost before a lease is."""

TRUSTED_PART: Final = 0.95
"""How much of a lease's life its owner counts on. So the clocks of worker and server may differ by a twentieth of a
lease over its life (their rates by 5 %, or the server's clock may leap 250 ms of 5 s) before an owner could start a
handler that another owner has started too. Their commits are fenced whatever the clocks do."""

FLOOR_PART: Final = 0.01
"""Never sooner than this after the last reply, in parts of a lease: 50 ms of 5 s, some round trips."""

SOON_SPREAD_PART: Final = 0.02
"""Workers that lost a race for the same partitions come back apart."""

LAPSE_SPREAD_PART: Final = 0.04
"""All workers know when a dead one lapses: a thousand of them then come within 200 ms of 5 s, not at one instant."""

RETRY_PART: Final = 0.1
"""Three tries and more fit between a renewal that failed and the end of the lease."""

HURRIES_MAX: Final = 10
"""Trips ahead of time without a gain, one after the other. A lease may long be held by one who seems gone (cut off from
the server that has the heartbeats only), and nobody may hammer at it meanwhile."""

LOOK_FIRST: Final = 1024
"""Leases looked at in the first try: all there are in most installations, and a millisecond of Redis's time."""

LOOK_GROWTH: Final = 4

ACQUIRE_MAX: Final = 1024
"""Leases reached for in one trip: opening partitions must not block the loop past the next renewal."""

_NONE: Final[Mapping[int, object]] = MappingProxyType({})


class RenewalRequest(NamedTuple):
    """What one round trip asks."""

    heartbeat: bool
    renew: Mapping[int, int]
    """Fencing tokens of the leases to renew, by partition."""
    look: Sequence[int]
    """Partitions of whose leases the holders are asked."""


class RenewalReply(NamedTuple):
    """What came back of a trip. The leases lie on several servers, so it may be anything from all to nothing."""

    live: Collection[str] | None = None
    """Who lives; None if the server that knows did not answer, or was not asked."""
    next_lapse_ms: int | None = None
    """In how long the next heartbeat of another worker lapses; None if there is no other."""
    kept: Mapping[int, bool] = _NONE  # type: ignore[assignment]
    """Of the leases to renew whose server answered: are they still ours."""
    taken: Mapping[int, str] = _NONE  # type: ignore[assignment]
    """Of the partitions looked at: the workers that hold them."""
    free: Collection[int] = ()
    """Of the partitions looked at: those that nobody holds."""


class LeasePlan(NamedTuple):
    lost: list[int]
    """Somebody else's now, or nobody's: forget them. The tenancy has."""
    resume: list[int]
    """Their leases had lapsed by the clock and are held again: what was put aside may start."""
    release: list[int]
    """Give back when what is under way has ended, then call `gone`."""
    acquire: list[int]
    """Try to take, then call `acquired` for those that were got."""
    next_s: float
    """From now to the next trip."""


class _Lease:
    __slots__ = ("leaving", "token", "until")

    def __init__(self, token: int, until: float, leaving: bool) -> None:
        self.token = token
        self.until = until
        self.leaving = leaving


class LeasePlanner:
    """The leases of one worker. All times are seconds of one monotonic clock; `chance` is 0 ... 1, random."""

    def __init__(self, worker_id: str, partitions: int, lease_s: float) -> None:
        self._worker_id = worker_id
        self._partitions = partitions
        self._lease_s = lease_s
        self._leases: dict[int, _Lease] = {}
        self._live: tuple[str, ...] = ()
        self._share = 0
        self._look_from = 0.0
        self._look_count = LOOK_FIRST
        self._hurries = 0
        self._draining = False

    @property
    def live(self) -> tuple[str, ...]:
        """The live workers as last seen, sorted, this one among them; empty before the first answer."""
        return self._live

    @property
    def owned(self) -> Collection[int]:
        """The partitions whose leases are ours, those on their way back among them."""
        return self._leases.keys()

    def lease_until(self, partition: int) -> float:
        """Until when the lease is surely held; 0 if it is not ours."""
        lease = self._leases.get(partition)
        return lease.until if lease else 0.0

    def may_start(self, partition: int, now: float) -> bool:
        """May a handler start: the lease is surely held, and the partition is not on its way back."""
        lease = self._leases.get(partition)
        return lease is not None and not lease.leaving and now < lease.until

    def soon_s(self, chance: float) -> float:
        """How long to wait where something happened between two trips that calls for the next one (a lease lost)."""
        return self._lease_s * (FLOOR_PART + SOON_SPREAD_PART * chance)

    # What happens to leases

    def acquired(self, partition: int, token: int, sent_at: float) -> None:
        """A lease was taken by a request sent at `sent_at`."""
        self._leases[partition] = _Lease(token, self._trusted_until(sent_at), self._draining)
        self._hurries = 0

    def gone(self, partition: int) -> None:
        """A lease was given back, or a commit was fenced off."""
        self._leases.pop(partition, None)

    def drain(self) -> None:
        """The worker stops: no heartbeat from now on, nothing is taken, everything is on its way back."""
        self._draining = True
        for lease in self._leases.values():
            lease.leaving = True

    # Trips

    def trip(self, now: float) -> RenewalRequest:
        renew = {partition: lease.token for partition, lease in self._leases.items()}
        looks = not self._draining and now >= self._look_from and self._missing() > 0
        return RenewalRequest(not self._draining, renew, self._around() if looks else ())

    def replied(
        self, trip: RenewalRequest, answers: RenewalReply, *, sent_at: float, now: float, chance: float
    ) -> LeasePlan:
        """What follows from what a trip brought back, which is `RenewalReply()` if the connection was lost.

        `sent_at` was read before the request was sent, `now` after the replies were there.
        """
        lost, resume = self._renewed(trip, answers.kept, sent_at, now)
        if trip.heartbeat and answers.live is not None:
            everything_lost = bool(trip.renew) and len(lost) == len(trip.renew)
            self._met(answers.live, everything_lost, now)
        if self._draining or not self._live:
            return LeasePlan(lost, resume, [], [], self._next_s(trip, answers, chance, hurry=False))
        release, acquire, hurry = self._balanced(trip, answers, chance)
        hurry = hurry and now >= self._look_from
        return LeasePlan(lost, resume, release, acquire, self._next_s(trip, answers, chance, hurry=hurry))

    def _trusted_until(self, sent_at: float) -> float:
        return sent_at + self._lease_s * TRUSTED_PART

    def _staying(self) -> list[int]:
        return [partition for partition, lease in self._leases.items() if not lease.leaving]

    def _missing(self) -> int:
        """How far below its share the worker is; negative if above. The share is 0 until it knows who lives."""
        return self._share - len(self._staying())

    def _around(self) -> list[int]:
        """The next partitions to look at, from the worker's own place in the ring on."""
        each, rest = divmod(self._partitions, len(self._live))
        rank = bisect_left(self._live, self._worker_id)
        start = rank * each + min(rank, rest)
        ring = chain(range(start, self._partitions), range(start))
        return list(islice((number for number in ring if number not in self._leases), self._look_count))

    def _renewed(
        self, trip: RenewalRequest, kept: Mapping[int, bool], sent_at: float, now: float
    ) -> tuple[list[int], list[int]]:
        lost, resume = [], []
        for partition, token in trip.renew.items():
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

    def _met(self, live: Collection[str], everything_lost: bool, now: float) -> None:
        met = {*live, self._worker_id}
        if met == {*self._live}:
            return
        before, self._live = self._live, tuple(sorted(met))
        self._share = share(self._worker_id, self._live, self._partitions)
        self._hurries = 0
        if everything_lost and len(self._live) == 1 < len(before):
            # Redis has lost its data, and this worker is the first one there: it would take everything, only to
            # give it back as the others come. They all do before a third of a lease is over.
            self._look_from = now + self._lease_s / RENEWALS_PER_LIFE

    def _balanced(
        self, trip: RenewalRequest, answers: RenewalReply, chance: float
    ) -> tuple[list[int], list[int], bool]:
        """What to give back, what to take, and whether the next trip is wanted soon."""
        missing = self._missing()
        if missing <= 0:
            self._look_count, self._hurries = LOOK_FIRST, 0
            if missing == 0:
                return [], [], False
        taken = {**answers.taken, **dict.fromkeys(self._leases, self._worker_id)}
        free = set(answers.free).difference(self._leases)
        all_seen = len(taken) + len(free) == self._partitions
        looked = None if all_seen else [number for number in trip.look if number in free or number in taken]
        release, acquire = plan(
            self._worker_id,
            self._live,
            self._staying(),
            taken,
            self._partitions,
            looked=looked,
            spread=chance,
        )
        for partition in release:
            self._leases[partition].leaving = True
        if missing < 0:
            return release, [], False
        if trip.look and not all_seen:
            self._look_count = min(self._look_count * LOOK_GROWTH, self._partitions)
        return [], acquire[:ACQUIRE_MAX], bool(acquire) or not all_seen or self._held_by_gone(answers.taken)

    def _held_by_gone(self, taken: Mapping[int, str]) -> bool:
        """Does one who is not live hold a lease, or this worker one it knows nothing of (its reply was lost)?"""
        return not {*taken.values()} <= {*self._live} - {self._worker_id}

    def _next_s(self, trip: RenewalRequest, answers: RenewalReply, chance: float, *, hurry: bool) -> float:
        silent = (
            (trip.heartbeat and answers.live is None)
            or len(answers.kept) < len(trip.renew)
            or len(answers.taken) + len(answers.free) < len(trip.look)
        )
        if silent:
            return self._lease_s * RETRY_PART * (0.75 + 0.5 * chance)
        if hurry and self._hurries < HURRIES_MAX:
            self._hurries += 1
            return self.soon_s(chance)
        next_s = self._lease_s / RENEWALS_PER_LIFE * (0.9 + 0.1 * chance)
        if answers.next_lapse_ms is None:
            return next_s
        spread_s = self._lease_s * (FLOOR_PART + LAPSE_SPREAD_PART * chance)
        return min(next_s, answers.next_lapse_ms / 1000 + spread_s)
