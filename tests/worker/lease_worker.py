"""A worker in the simulation: the real `LeasePlanner`, and around it the least of what `PartitionManager` and
`Committer` do.

It is single-threaded as the real one is: while it is paused, what arrives and what is due waits for it. When it goes on
it acts on what it knew before it sees any of that.
"""

from collections.abc import Callable
from typing import Any

from lease_model import LEASE_S, RATE_SKEW, Clock, Server

from maskline.worker.commands.scripts import COMMITTED, DIVERGED
from maskline.worker.leases.planner import LeasePlanner, RenewalReply, RenewalRequest


class Holding:
    """A partition as its owner has it."""

    def __init__(self, token: int, done: int) -> None:
        self.token = token
        self.done = self.committed = done
        self.number = 0
        self.in_flight = self.busy = self.aside = self.closing = self.releasing = False
        self.dropped = False
        """Its server has lost something: nothing is committed any more."""


class Node:
    """A worker process: carries out its planner's plans, and commits."""

    def __init__(self, sim: Any, name: str) -> None:
        self.sim = sim
        self.name = name
        self.clock = Clock(1 + sim.random.uniform(-RATE_SKEW, RATE_SKEW), sim.random.uniform(1, 1000))
        self.planner = LeasePlanner(name, sim.partitions, LEASE_S)
        self.holdings: dict[int, Holding] = {}
        self.dead = self.paused = self.draining = False
        self.backlog: list[Callable[[], None]] = []
        self._round = 0
        self._tokens: dict[int, int] = {}
        self.schedule_request(sim.random.uniform(0, 0.1))
        self.schedule_work()

    def now(self) -> float:
        return self.clock.read(self.sim.now)

    def may_start(self, number: int) -> bool:
        return not self.dead and not self.paused and self.planner.may_start(number, self.now())

    # Requests

    def schedule_request(self, in_s: float) -> None:
        self._round += 1
        self.sim.later(in_s / self.clock.rate, self.send_request, self._round, node=self)

    def send_request(self, turn: int) -> None:
        if turn != self._round:
            return
        sim, sent_at = self.sim, self.now()
        request = self.planner.request(sent_at)
        live, lapse_ms, kept, taken, free = None, None, {}, {}, []
        waiting = len(sim.servers)

        def carry_out(server: Server, index: int) -> tuple:
            beat = server.heartbeat(sim.now, self.name) if index == 0 and request.heartbeat else None
            renewed = {
                n: server.renew(sim.now, n, token, self.name)
                for n, token in request.renew.items()
                if sim.servers[n % len(sim.servers)] is server
            }
            seen = {
                n: server.held(n, sim.now)
                for n in request.probe
                if sim.servers[n % len(sim.servers)] is server
            }
            return beat, renewed, seen

        def answered(reply: tuple | None) -> None:
            nonlocal live, lapse_ms, waiting
            waiting -= 1
            if reply is not None:
                beat, renewed, seen = reply
                live, lapse_ms = beat or (live, lapse_ms)
                kept.update(renewed)
                taken.update({n: held[1] for n, held in seen.items() if held is not None})
                free.extend(n for n, held in seen.items() if held is None)
            if waiting == 0:
                self._follow(request, RenewalReply(live, lapse_ms, kept, taken, free), sent_at)

        for index, server in enumerate(sim.servers):
            sim.send(self, server, lambda server=server, index=index: carry_out(server, index), answered)

    def _follow(self, request: RenewalRequest, reply: RenewalReply, sent_at: float) -> None:
        sim, now = self.sim, self.now()
        plan = self.planner.plan(
            request, reply, sent_at=self._counted_from(sent_at), now=now, chance=sim.random.random()
        )
        if any(plan[:4]):
            sim.note("%s: %s", self.name, plan)
        for number in plan.lost:
            self._forget(number)
        for number in plan.resume:
            sim.note("%s: goes on with %s", self.name, number)
            self.holdings[number].aside = "stuck" in sim.flaws
        for number in () if "hoard" in sim.flaws else plan.release:
            self._give_back(number)
        if "idle" in sim.flaws and plan.acquire and sim.random.random() < 0.9:
            plan = plan._replace(acquire=[], next_s=LEASE_S / 2)
        self._acquire(plan.acquire, plan.next_s)
        sim.note_owned()

    def _counted_from(self, sent_at: float) -> float:
        if "reply" in self.sim.flaws:
            return self.now()
        return sent_at + 0.05 * LEASE_S if "trust" in self.sim.flaws else sent_at

    def _acquire(self, numbers: list[int], next_s: float) -> None:
        if not numbers:
            self.schedule_request(next_s)
            return
        sim, sent_at, waiting = self.sim, self.now(), len(numbers)

        def answered(number: int, reply: tuple[int, int] | None) -> None:
            nonlocal waiting
            waiting -= 1
            if reply is not None:
                self.planner.acquired(number, reply[0], self._counted_from(sent_at))
                self._tokens[number] = reply[0]
                self.holdings[number] = Holding(*reply)
                sim.moves += 1
                sim.note("%s: took %s under %s", self.name, number, reply[0])
                if self.draining:
                    self._give_back(number)
            if waiting == 0:
                self.schedule_request(next_s)
                sim.note_owned()

        for number in numbers:
            server = sim.server(number)
            sim.send(
                self, server,
                lambda server=server, number=number: server.acquire(
                    sim.now, number, self.name, self._tokens.get(number, 0)
                ),
                lambda reply, number=number: answered(number, reply),
            )  # fmt: skip

    # Giving back

    def stop(self) -> None:
        self.draining = True
        self.planner.drain()
        for number in list(self.holdings):
            self._give_back(number)
        first = self.sim.servers[0]
        self.sim.send(self, first, lambda: first.leave(self.name), lambda _: None)
        self.dead = not self.holdings

    def _give_back(self, number: int) -> None:
        holding = self.holdings[number]
        holding.closing = True
        self._settle(number, holding)

    def _settle(self, number: int, holding: Holding) -> None:
        """Commit what is done; release what is on its way back, once all is committed."""
        if self.holdings.get(number) is not holding or holding.in_flight:
            return
        if holding.done > holding.committed and not holding.dropped:
            holding.number += 1
            holding.in_flight = True
            self._commit(number, holding, holding.number, holding.committed, holding.done)
        elif holding.closing and not holding.busy and not holding.releasing:
            holding.releasing = True
            self._release(number, holding)

    def _release(self, number: int, holding: Holding) -> None:
        sim, server = self.sim, self.sim.server(number)

        def answered(reply: bool | None) -> None:
            if self.holdings.get(number) is not holding:
                return
            if reply is None:
                sim.later(0.1, self._release, number, holding, node=self)
                return
            self._forget(number)
            self.schedule_request(self.planner.early_delay_s(sim.random.random()))

        sim.send(self, server, lambda: server.release(sim.now, number, holding.token, self.name), answered)

    def _forget(self, number: int) -> None:
        del self.holdings[number]
        self.planner.forget(number)
        self.sim.moves += 1
        self.dead = self.draining and not self.holdings

    # Work

    def schedule_work(self) -> None:
        self.sim.later(self.sim.random.uniform(0.02, 0.15) * LEASE_S, self.work, True, node=self)

    def work(self, again: bool) -> None:
        for number, holding in self.holdings.items():
            if holding.busy or holding.aside or holding.closing:
                continue
            if self.may_start(number) or "blind" in self.sim.flaws:
                holding.busy = True
                self.sim.started(self, number, holding.token)
                self.sim.later(
                    self.sim.random.uniform(0.01, 0.3) * LEASE_S, self._finish, number, holding, node=self
                )
            else:
                holding.aside = True
        if again:
            self.schedule_work()

    def _finish(self, number: int, holding: Holding) -> None:
        holding.busy = False
        holding.done += 1
        self._settle(number, holding)

    def _commit(self, number: int, holding: Holding, commit: int, start: int, end: int) -> None:
        sim, server = self.sim, self.sim.server(number)

        def answered(reply: int | None) -> None:
            if self.holdings.get(number) is not holding:
                return
            if reply is None:  # carried out or not: the same once more
                sim.later(0.1, self._commit, number, holding, commit, start, end, node=self)
            elif reply == COMMITTED:
                holding.committed, holding.in_flight = end, False
                self._settle(number, holding)
            elif reply == DIVERGED:
                sim.note("%s: has seen more of %s under %s", self.name, number, holding.token)
                holding.in_flight, holding.closing, holding.dropped = False, True, True
                self._settle(number, holding)
            else:
                sim.note("%s: fenced off %s under %s", self.name, number, holding.token)
                self._forget(number)
                self.schedule_request(self.planner.early_delay_s(sim.random.random()))

        sim.send(
            self, server,
            lambda: server.commit(sim.now, number, holding.token, self.name, commit, start, end),
            answered,
        )  # fmt: skip
