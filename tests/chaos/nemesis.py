"""Carries out a plan of faults against a stage, and writes down what it did and how long the recovery took.

Rules
- A fault is written down when it is over: when its process is up again, its proxy heals, its silence has ended.
- A process that ended by itself is started again by its next kill or restart; the checker sees the exit.
- It talks to Valkey past the proxies, to see the leases; what it sees decides nothing but when it stops to look.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence

import redis
from fault_plan import SILENCE_MAX_S, Planned
from history import Fact, Fault, Recovery
from proxy import Proxy
from stage import Node, Stage

LOOK_S = 0.02
"""Between two looks at the leases: how exactly a takeover is measured."""
TAKEOVER_MAX_S = 30.0
ANSWERS_MAX_S = 30.0


class Nemesis:
    """`last_answer()`: by ingest node, when its last request that was answered 200 had begun."""

    def __init__(
        self, stage: Stage, note: Callable[[Fact], None], last_answer: Callable[[str], float]
    ) -> None:
        self._stage = stage
        self._note = note
        self._last_answer = last_answer
        self._tasks: set[asyncio.Task[None]] = set()
        self.injected = 0
        self.kills = 0
        self.now: dict[str, str] = {}
        """The fault of each target that has one."""

    async def run(self, planned: Sequence[Planned], stop: asyncio.Event) -> None:
        """Inject every fault at its time, and wait until all are over; `stop` leaves out the rest."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in planned:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(began + fault.at_s - time.monotonic()):
                        await stop.wait()
                if stop.is_set():
                    break
                group.create_task(self._inject(fault))
        if stop.is_set():
            for task in self._tasks:
                task.cancel()  # nothing is decided, and nobody sends what they wait for
        else:
            await self._finish()

    async def _finish(self) -> None:
        """Wait for the measurements under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in list(self._tasks):
            task.result()

    def _measure(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)

    async def _inject(self, fault: Planned) -> None:
        self.injected += 1
        self.kills += fault.kind == "kill"
        while fault.target in self.now:
            await asyncio.sleep(LOOK_S)  # the last one took longer than planned
        self.now[fault.target] = fault.kind
        try:
            if fault.target == "redis":
                began, pid = await self._redis(fault)
            else:
                node = self._stage.node(fault.target)
                began, pid = time.monotonic(), node.pid
                await self._node(node, fault)
        finally:
            del self.now[fault.target]
        self._note(Fault(fault.kind, fault.target, pid, began, time.monotonic()))
        for ingest in self._stage.ingests:
            if fault.target in (ingest.name, "redis"):
                self._measure(asyncio.create_task(self._until_answers(ingest.name)))

    async def _redis(self, fault: Planned) -> tuple[float, int]:
        server = self._stage.server
        assert server.process is not None
        began, pid = time.monotonic(), server.process.pid
        if fault.kind == "kill":
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(server.start)
        elif fault.kind in ("fail_over", "come_back"):
            await self._fail_over(fault)
        else:
            server.pause()
            await asyncio.sleep(fault.lasts_s)
            server.resume()
        return began, pid

    async def _fail_over(self, fault: Planned) -> None:
        """The other server takes the primary's place, without what that took in the last `lasts_s`."""
        stage, servers = self._stage, self._stage.servers
        await asyncio.to_thread(servers.stop_replication)
        if fault.amount:
            await asyncio.to_thread(
                servers.advance_clock, [stage.keys.callbacks(number) for number in range(stage.partitions)]
            )
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(servers.fail_over)
        stage.follow_primary()
        if fault.kind == "come_back":
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(servers.return_old_primary)
            stage.follow_primary()
        await asyncio.to_thread(servers.attach_replica)

    async def _node(self, node: Node, fault: Planned) -> None:
        match fault.kind:
            case "kill":
                await self._kill(node, fault.lasts_s)
            case "restart":
                await node.terminate()
                await asyncio.sleep(fault.lasts_s)
                await node.start()
            case "stop":
                await node.stopped()
                await asyncio.sleep(fault.lasts_s)
                node.send(signal.SIGCONT)
            case "descriptors":
                with node.few_descriptors(int(fault.amount)):
                    await node.proxy.cut()
                    await asyncio.sleep(fault.lasts_s / 2)
                    await node.proxy.heal()
                    await asyncio.sleep(fault.lasts_s / 2)
            case "log":
                with node.log_unread():
                    await asyncio.sleep(fault.lasts_s)
                    began, pid = time.monotonic(), node.pid
                    await node.terminate()
                self._note(Fault("restart", node.name, pid, began, time.monotonic()))
                await node.start()
            case "spool":
                await self._without_spool(node, fault)
            case "delay" | "slow" | "thin" | "reset" | "half_open" | "cut":
                await self._link(node.proxy, fault)
            case _:
                raise ValueError(f"no such fault: {fault.kind}")

    async def _link(self, proxy: Proxy, fault: Planned) -> None:
        match fault.kind:
            case "delay" | "slow":
                proxy.delay(fault.amount)
            case "thin":
                proxy.thin(int(fault.amount))
            case "reset":
                proxy.reset(int(fault.amount))
            case "half_open":
                proxy.half_open()
            case _:
                await proxy.cut()
        await asyncio.sleep(fault.lasts_s)
        await proxy.heal()
        if fault.kind == "half_open":
            await proxy.until_heard(SILENCE_MAX_S)

    async def _kill(self, node: Node, down_s: float) -> None:
        held = await self._held_by(node.pid) if node.role == "worker" else {}
        began = time.monotonic()
        await node.kill()
        if held:
            self._measure(asyncio.create_task(self._until_taken_over(node.name, held, began)))
        await asyncio.sleep(down_s)
        await node.start()

    async def _without_spool(self, node: Node, fault: Planned) -> None:
        """The spool goes, then Redis, then the process; what the spool had is put back before the next one starts."""
        copy = await node.remove_spool(int(fault.amount))
        await asyncio.sleep(fault.lasts_s / 3)
        await node.proxy.cut()
        await asyncio.sleep(fault.lasts_s * 2 / 3)
        await node.kill()
        await node.proxy.heal()
        node.put_spool_back(copy)
        await node.start()

    # Measurements

    async def _held_by(self, pid: int) -> dict[int, int]:
        """The fencing tokens of a worker's partitions; a worker's id bears its pid."""
        with contextlib.suppress(redis.RedisError):
            leases = await asyncio.to_thread(self._stage.leases)
            return {number: token for number, (token, worker) in leases.items() if f"-p{pid}-" in worker}
        return {}

    async def _until_taken_over(self, target: str, held: dict[int, int], began: float) -> None:
        while held and time.monotonic() < began + TAKEOVER_MAX_S:
            with contextlib.suppress(redis.RedisError):
                leases = await asyncio.to_thread(self._stage.leases)
                for number in [number for number in held if leases.get(number, (0, ""))[0] > held[number]]:
                    del held[number]
            await asyncio.sleep(LOOK_S)
        self._note(Recovery("takeover", target, began, time.monotonic() - began))

    async def _until_answers(self, name: str) -> None:
        """Since the fault is over: until a request that was begun later is answered 200."""
        over = time.monotonic()
        while self._last_answer(name) < over and time.monotonic() < over + ANSWERS_MAX_S:
            await asyncio.sleep(LOOK_S)
        if self._last_answer(name) >= over:
            self._note(Recovery("answers", name, over, self._last_answer(name) - over))
