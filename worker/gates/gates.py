"""The gates of all handlers of a worker process: which may run now, how much of them at once, and which are held.

A handler is *held* while an operator has paused it, and while its circuit breaker (`worker.gates.breaker`) has it down
or recovering. Events of a held handler go to their sessions' retry queues, and its failures spend no attempts.

Who calls what:

| caller | calls |
| --- | --- |
| the event runner | looks at `holds` before each handler, `admit` and `release` around each attempt of a limited one |
| both runners | `failed` after each failed attempt; `succeeded` after each success of a handler in `failing` |
| the retry runner | `take_max`, then `queue_began` for each queue that it wants, before it takes them from Redis |
| | `may_go_on` before each further event of a queue; `queue_ended` for every queue that began |
| | `nothing_due` when no owned partition has a queue of the handler that is due; `next_look_s` to sleep |
| the control task | `set_paused`, `take_over`, `reports` |

The event runner looks at two plain sets, empty nearly always. Everything here is called on the event loop.
"""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Final, Protocol

from maskline.runtime.logs import get_logger
from maskline.schemas.handler_control import HandlerReport, Pause
from maskline.worker.gates.breaker import UNBOUNDED, HandlerBreaker, State
from maskline.worker.gates.limits import HandlerLimits

RECOVERING_RETRY_MS: Final = 1_000
"""Otherwise the last bad event of a recovery would be tried again and again at once."""

_log = get_logger("maskline.worker")


class GatedHandler(Protocol):
    """What the gates need to know of a handler."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def concurrency(self) -> int | None:
        """How much of it may run at once in a worker process; None for no limit."""

    @property
    def rate(self) -> float | None:
        """Its calls a second in a worker process; None for no limit."""


class _Gate:
    """What is known of one handler."""

    __slots__ = ("breaker", "congested", "down_since_ms", "held_at", "limits", "pause", "up_since_ms")

    def __init__(self, limits: HandlerLimits | None) -> None:
        self.breaker = HandlerBreaker()
        self.limits = limits
        self.pause: Pause | None = None
        self.held_at = 0.0
        """Since when it is held, by the clock of the gates."""
        self.down_since_ms = 0
        self.up_since_ms = 0
        self.congested = False
        """Events of it that the limits did not admit wait: later ones line up behind them."""


class HandlerGates:
    """The gates of `handlers`. Names that are not among them are ignored: they cannot be run.

    `clock`: seconds, monotonic. `wall_ms`: the wall clock. `chance`: a number from 0 to 1 for the jitter of probes.
    """

    def __init__(
        self,
        handlers: Iterable[GatedHandler],
        *,
        wall_ms: Callable[[], int],
        chance: Callable[[], float],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._wall_ms = wall_ms
        self._chance = chance
        now = clock()
        self._gates = {
            handler.name: _Gate(
                None
                if handler.concurrency is None and handler.rate is None
                else HandlerLimits(handler.concurrency, handler.rate, now)
            )
            for handler in handlers
        }
        self.holds: set[str] = set()
        """The held handlers: their events go to retry queues instead of being run."""
        self.failing: set[str] = set()
        """Handlers that have failed since their last success, and held ones: `succeeded` must hear of a success."""
        self.on_change: Callable[[str], None] = lambda _handler: None
        """Called with a handler's name when `take_max` may have grown, for other reasons than the passing of time."""

    @property
    def handlers(self) -> list[str]:
        """The names of all handlers."""
        return list(self._gates)

    # How attempts end

    def failed(self, handler: str, session: str) -> None:
        """Note that an attempt of `handler` on an event of `session` failed. A Reject is no failure."""
        if (gate := self._gates.get(handler)) is None:
            return
        self.failing.add(handler)
        before = gate.breaker.state
        gate.breaker.failed(session, self._clock())
        self._follow(handler, gate, before)

    def succeeded(self, handler: str) -> None:
        """Note that an attempt of `handler` succeeded."""
        if (gate := self._gates.get(handler)) is None:
            return
        before = gate.breaker.state
        gate.breaker.succeeded(self._clock())
        if handler not in self.holds:
            self.failing.discard(handler)
        self._follow(handler, gate, before)
        if before == gate.breaker.state == "recovering":
            self.on_change(handler)

    def held_retry_ms(self, handler: str) -> int:
        """After how many ms an event is tried again whose attempt failed while the handler was held.

        0 where the gates themselves set the pace, as while it is down.
        """
        return RECOVERING_RETRY_MS if self.state(handler) == "recovering" else 0

    def up_since_ms(self, handler: str) -> int:
        """When the handler was last held no longer, by the wall clock in ms; 0 if it never was held.

        The time limit of an event counts from then at the earliest.
        """
        gate = self._gates.get(handler)
        return 0 if gate is None else gate.up_since_ms

    # Live events

    def admit(self, handler: str) -> bool:
        """Whether a live event of a limited handler may start now; if so, `release` must follow its attempt.

        Once one was not admitted, none is until `nothing_due`: they would overtake those that wait.
        """
        gate = self._gates.get(handler)
        if gate is None or gate.limits is None:
            return True
        if handler in self.holds or gate.congested:
            return False
        if gate.limits.available(self._clock()) == 0:
            gate.congested = True
            return False
        gate.limits.begin()
        return True

    def release(self, handler: str) -> None:
        """Note that an admitted attempt has ended."""
        gate = self._gates.get(handler)
        if gate is not None and gate.limits is not None and (gate.limits.end() or gate.congested):
            self.on_change(handler)

    # Retry queues

    def take_max(self, handler: str) -> int:
        """How many retry queues of the handler may be begun now, beside those under way. Takes nothing by itself."""
        gate = self._gates.get(handler)
        if gate is None or gate.pause is not None:
            return 0
        now = self._clock()
        self._settle(handler, gate, now)
        free = gate.breaker.limit(now)
        if free != UNBOUNDED:
            free = max(0, free - gate.breaker.running)
        if gate.limits is not None:
            allowed = gate.limits.available(now)
            free = free if allowed is None else min(free, allowed)
        return free

    def queue_began(self, handler: str) -> None:
        """Note that a retry queue is about to be taken and run. Call it before anything else may run: it reserves."""
        if (gate := self._gates.get(handler)) is not None:
            gate.breaker.queue_began(self._clock())
            if gate.limits is not None:
                gate.limits.begin()

    def may_go_on(self, handler: str) -> bool:
        """Whether the next event of a queue under way may be tried; if not, the rest of the queue is given back."""
        gate = self._gates.get(handler)
        if gate is None or gate.pause is not None or gate.breaker.state == "down":
            return False
        return gate.limits is None or gate.limits.call_again(self._clock())

    def queue_ended(self, handler: str, *, ran: bool = True) -> None:
        """Note that a queue that began is not run any more. `ran`: False if none was taken, or no event was tried."""
        if (gate := self._gates.get(handler)) is None:
            return
        gate.breaker.queue_ended(self._clock(), self._chance())
        was_full = gate.limits is not None and gate.limits.end(called=ran)
        if was_full or gate.congested or handler in self.holds:
            self.on_change(handler)

    def nothing_due(self, handler: str) -> None:
        """Note that no owned partition has a retry queue of the handler that is due: live events run as they come."""
        if (gate := self._gates.get(handler)) is None:
            return
        gate.congested = False
        if gate.pause is None:
            before = gate.breaker.state
            gate.breaker.nothing_due()
            self._follow(handler, gate, before)

    def next_look_s(self, handler: str) -> float | None:
        """In how many seconds `take_max` may grow by itself; None if only `on_change` tells."""
        gate = self._gates.get(handler)
        if gate is None or gate.pause is not None:
            return None
        now = self._clock()
        self._settle(handler, gate, now)
        growth_s = gate.breaker.next_growth_s(now)
        if gate.limits is None:
            return growth_s
        wait_s = gate.limits.wait_s(now)
        if wait_s is None or gate.breaker.limit(now) > gate.breaker.running:
            return wait_s or growth_s if wait_s is not None else None
        return None if growth_s is None else max(growth_s, wait_s)

    # Pauses, and what other workers know

    def set_paused(self, paused: Mapping[str, Pause]) -> None:
        """Take over which handlers are paused, by their names; all others are not."""
        for handler, gate in self._gates.items():
            pause, before, state = paused.get(handler), gate.pause, gate.breaker.state
            gate.pause = pause
            if pause is not None and before is None:
                _log.warning("handler paused", handler=handler, why=pause.why or None, by=pause.by or None)
                self._follow(handler, gate, state)
            elif pause is None and before is not None:
                paused_s = max(0, self._wall_ms() - before.since_ms) // 1000 if before.since_ms else None
                _log.info("handler resumed", handler=handler, paused_s=paused_s)
                gate.breaker.resumed(self._clock())
                self._follow(handler, gate, state)
                self.on_change(handler)

    def take_over(self, handler: str, report: HandlerReport) -> None:
        """Begin with what another worker process knew of the handler: it is down, or when it came back."""
        gate = self._gates.get(handler)
        if gate is None:
            return
        gate.up_since_ms = max(gate.up_since_ms, report.up_since_ms)
        if report.down_since_ms and gate.breaker.state == "up":
            before = gate.breaker.state
            gate.breaker.taken_over(self._clock())
            self._follow(handler, gate, before)
            gate.down_since_ms = min(gate.down_since_ms, report.down_since_ms)
            self.on_change(handler)

    def reports(self) -> dict[str, HandlerReport]:
        """What others should know of each handler."""
        return {
            handler: HandlerReport(gate.down_since_ms, gate.up_since_ms, gate.breaker.state == "recovering")
            for handler, gate in self._gates.items()
        }

    def state(self, handler: str) -> State:
        """The state of the handler's circuit breaker; up for one that is not known."""
        gate = self._gates.get(handler)
        return "up" if gate is None else gate.breaker.state

    def paused(self, handler: str) -> Pause | None:
        """The handler's pause; None if it is not paused."""
        gate = self._gates.get(handler)
        return None if gate is None else gate.pause

    # Inside

    def _settle(self, handler: str, gate: _Gate, now: float) -> None:
        before = gate.breaker.state
        gate.breaker.settle(now)
        self._follow(handler, gate, before)

    def _follow(self, handler: str, gate: _Gate, before: State) -> None:
        """Follow a change of the breaker or of the pause: log it, and hold the handler or hold it no longer."""
        breaker, now = gate.breaker, self._clock()
        if breaker.state != before:
            self._log_change(handler, gate, before, now)
        if gate.pause is not None or breaker.state != "up":
            if handler not in self.holds:
                gate.held_at = now
                self.holds.add(handler)
                self.failing.add(handler)
        elif handler in self.holds:
            gate.up_since_ms = self._wall_ms()
            self.holds.discard(handler)
            if not breaker.failures:
                self.failing.discard(handler)
        if breaker.state not in (before, "down"):
            self.on_change(handler)

    def _log_change(self, handler: str, gate: _Gate, before: State, now: float) -> None:
        breaker = gate.breaker
        held_s = round(now - gate.held_at, 1)
        if breaker.state == "down":
            gate.down_since_ms = gate.down_since_ms or self._wall_ms()
            _log.warning("handler down", handler=handler, failures=breaker.failures, was=before)
        elif breaker.state == "recovering":
            if before == "down":
                _log.info("handler recovering", handler=handler, held_s=held_s, probes=breaker.probes)
        else:
            gate.down_since_ms = 0
            _log.info("handler up", handler=handler, held_s=held_s)
