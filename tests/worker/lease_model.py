"""Redis as the lease protocol sees it: the scripts of `worker/commands/lua`, on dictionaries and a clock that may err.

The server is its own judge: a commit that succeeds must go on exactly where the last one ended, under the newest token
there is. `flaws` switches single checks off, to show that the simulation notices.
"""

from collections.abc import Iterable

from maskline.worker.commands.scripts import COMMITTED, DIVERGED, FENCED

LEASE_S = 5.0
RATE_SKEW = 0.02
"""How far any clock's rate may be from the true one: two of them differ by 4 %, a lease is trusted for 95 %."""

FLAWS = {
    "acquire": "acquire does not check that the lease is free",
    "renew": "renew does not compare the lease's value",
    "fence": "commit does not compare the lease's value",
    "chain": "commit does not check its number",
    "reply": "a lease counts from the reply",
    "trust": "a lease is trusted for its whole life",
    "blind": "handlers start without a check of the lease",
    "stuck": "no worker resumes what was set aside",
    "idle": "no worker acquires a free partition before two lease times",
    "hoard": "no worker releases what is over its share",
}
"""Besides, `lapse`: no worker knows when the next heartbeat lapses. That breaks nothing, it only takes longer."""


class ViolationError(AssertionError):
    """An invariant does not hold."""


class Clock:
    """A clock that goes at `rate` and says `offset_s` at the beginning of time."""

    def __init__(self, rate: float, offset_s: float) -> None:
        self.rate = rate
        self.offset_s = offset_s

    def read(self, now: float) -> float:
        return self.offset_s + self.rate * now


class Server:
    """One Redis server, and the replica that follows it some way behind."""

    def __init__(self, clock: Clock, flaws: Iterable[str] = ()) -> None:
        self.clock = clock
        self.lease_ms = int(LEASE_S * 1000)
        self.flaws = frozenset(flaws)
        self.away = False
        self.leases: dict[int, tuple[int, str, int]] = {}
        """Token, worker and the server's millisecond in which it expires, by partition."""
        self.fences: dict[int, tuple[int, int]] = {}
        """The newest token and the number of its last commit."""
        self.owners: dict[int, tuple[str, bool]] = {}
        """Whose the newest token is, and whether its lease was given back."""
        self.done: dict[int, tuple[int, int]] = {}
        """Under which token the last commit was made, and up to where in the stream."""
        self.members: dict[str, int] = {}
        self._replica: tuple[dict, ...] = ({}, {}, {}, {}, {})

    def _written(self) -> tuple[dict, ...]:
        return tuple(map(dict, (self.leases, self.fences, self.owners, self.done, self.members)))

    def replicate(self) -> None:
        """The replica has caught up."""
        self._replica = self._written()

    def fail_over(self) -> None:
        """The replica takes over; what had not been replicated never happened.

        The one that was the primary is its replica now, and has not heard of it: it may come back as it is.
        """
        old = self._written()
        self.leases, self.fences, self.owners, self.done, self.members = self._replica
        self._replica = old

    def now_ms(self, now: float) -> int:
        return int(self.clock.read(now) * 1000)

    def held(self, partition: int, now: float) -> tuple[int, str] | None:
        """Token and worker of a lease that has not expired."""
        lease = self.leases.get(partition)
        return lease[:2] if lease is not None and self.now_ms(now) < lease[2] else None

    # The scripts

    def heartbeat(self, now: float, worker: str) -> tuple[tuple[str, ...], int | None]:
        now_ms = self.now_ms(now)
        self.members[worker] = now_ms
        self.members = {who: at for who, at in self.members.items() if at >= now_ms - self.lease_ms}
        others = [at for who, at in self.members.items() if who != worker]
        known = others and "lapse" not in self.flaws
        return tuple(self.members), min(others) + self.lease_ms + 1 - now_ms if known else None

    def leave(self, worker: str) -> None:
        self.members.pop(worker, None)

    def renew(self, now: float, partition: int, token: int, worker: str) -> bool:
        held = self.held(partition, now)
        if held is None and self._lapsed(partition, token, worker):
            held = (token, worker)
        if held is None or (held != (token, worker) and "renew" not in self.flaws):
            return False
        self.leases[partition] = (*held, self.now_ms(now) + self.lease_ms)
        return True

    def _lapsed(self, partition: int, token: int, worker: str) -> bool:
        """Nobody has taken the lease since it expired, and it was not given back."""
        newest, _ = self.fences.get(partition, (0, 0))
        return newest == token and self.owners.get(partition) == (worker, False)

    def release(self, now: float, partition: int, token: int, worker: str) -> bool:
        if self.held(partition, now) != (token, worker):
            return False
        del self.leases[partition]
        self.owners[partition] = (worker, True)
        return True

    def acquire(self, now: float, partition: int, worker: str, token_over: int = 0) -> tuple[int, int] | None:
        """The token, greater than `token_over`, and up to where the stream is done."""
        if self.held(partition, now) is not None and "acquire" not in self.flaws:
            return None
        now_ms = self.now_ms(now)
        token = max(self.fences.get(partition, (0, 0))[0] + 1, now_ms, token_over + 1)
        self.fences[partition] = (token, 0)
        self.owners[partition] = (worker, False)
        self.leases[partition] = (token, worker, now_ms + self.lease_ms)
        return token, self.done.get(partition, (0, 0))[1]

    def commit(
        self, now: float, partition: int, token: int, worker: str, number: int, start: int, end: int
    ) -> int:
        """Commit `number` of a token: the stream is done from `start` up to `end`. The replies of commit.lua."""
        held = self.held(partition, now)
        mine = held == (token, worker) or (held is None and self._lapsed(partition, token, worker))
        if not mine and "fence" not in self.flaws:
            return FENCED
        newest, last = self.fences.get(partition, (0, 0))
        if "chain" not in self.flaws:
            if last == number:
                return COMMITTED
            if last + 1 != number:
                return DIVERGED
        under, done = self.done.get(partition, (0, 0))
        if token < max(under, newest):
            raise ViolationError(f"partition {partition}: committed under {token} after {max(under, newest)}")
        if start != done:
            raise ViolationError(
                f"partition {partition}: {done} is done, and a commit of {start} to {end} succeeds"
            )
        self.fences[partition] = (newest, number)
        self.done[partition] = (token, end)
        return COMMITTED
