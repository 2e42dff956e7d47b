"""`maskline dev --demo`: plays a few dozen shuffled sessions to the running nodes and checks the events that they
handled.

The check compares sent with handled events. It demands little, so that a slow machine does not fail it: each event was
handled exactly once, and within a session and run the numbers rise, except for events flagged late.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from maskline.console.dev_handler import HandledEvent, listen
from maskline.console.simulate.plan import PlanOptions, SessionPlan, fit_to_rate, interleave, plan_sessions
from maskline.console.simulate.player import Player, Target
from maskline.console.simulate.report import PlanProgress, report
from maskline.console.simulate.sessions import SessionOptions
from maskline.schemas.settings import Settings

SESSIONS: Final = 30
RATE: Final = 200.0
"""Callbacks a second: fast enough to be over in seconds, slow enough to read along."""
HANDLED_TIMEOUT_S: Final = 30.0
"""How long the nodes may take to handle the sent events, on top of the gap timeout."""

EventKey = tuple[str, str, int | None]
"""SessionUUID, EventName, sequence number."""


class Comparison(NamedTuple):
    """The events sent, compared with those handled."""

    sent: int
    """Different callbacks, duplicates not counted."""
    missing: int
    """Sent and not handled."""
    repeated: int
    """Handled more often than sent."""
    misplaced: int
    """Handled after a greater number of their lane and run, and not flagged late."""

    @property
    def good(self) -> bool:
        """Whether everything was handled once and in order."""
        return not (self.missing or self.repeated or self.misplaced)


def compare(sent: Counter[EventKey], handled: Iterable[HandledEvent]) -> Comparison:
    """Compare the events sent with those handled, in the order of handling."""
    seen: Counter[EventKey] = Counter()
    latest: dict[tuple[str, bool, int], int] = {}
    misplaced = 0
    for event in handled:
        seen[event.session_uuid, event.event_name, event.number] += 1
        if event.number is None or event.order == "late":
            continue
        lane = event.session_uuid, event.recording, event.run
        if event.number <= latest.get(lane, -1):
            misplaced += 1
        latest[lane] = event.number
    return Comparison(sent.total(), (sent - seen).total(), (seen - sent).total(), misplaced)


class Demo:
    """Plays simulated sessions to the nodes of this process, once."""

    def __init__(self, settings: Settings, target: Target) -> None:
        session = SessionOptions(
            first_sequence=settings.first_sequence, recording_sequence=settings.recording_sequence
        )
        options = PlanOptions(
            seed=random.SystemRandom().randrange(10**6),
            sessions=SESSIONS,
            losses=0.01,
            session=session,
        )
        self.options = fit_to_rate(options, RATE)
        self._shared = settings.recording_sequence == "shared"
        self._handled_timeout_s = settings.gap_timeout_ms / 1000 + HANDLED_TIMEOUT_S
        self._target = target
        self._sent: Counter[EventKey] = Counter()
        self._sessions: set[str] = set()
        self._handled: list[HandledEvent] = []
        self._progress = asyncio.Event()

    async def play(self, stop: asyncio.Event, write: Callable[[str], None]) -> bool:
        """Play, wait until everything is handled, and `write` the result. Returns whether it is good."""
        options = self.options
        write(
            f"playing {options.sessions} sessions: {options.shuffle:.0%} of the callbacks come up to "
            f"{options.window} places late, {options.duplicates:.0%} twice, {options.losses:.0%} never"
        )
        progress = PlanProgress(self._record_planned)
        end = listen(self._record_handled)
        try:
            player = Player(self._target, rate=RATE, on_sent=progress.sent)
            tally = await player.play(interleave(progress.record(plan_sessions(options)), options), stop)
            if not stop.is_set() and tally.all_taken:
                await self._wait_until_handled(stop)
        finally:
            end()
        if stop.is_set():
            return True
        comparison = compare(self._sent, self._handled)
        summary = report(str(self._target.url), options, progress, tally)
        orders = Counter(handled.order for handled in self._handled)
        write(
            f"{progress.sessions} sessions: {comparison.sent} events sent, {summary['duplicates']} of them twice, "
            f"{summary['lost']} lost on purpose; p99 of the answers {summary['latency_ms']['p99']:.0f} ms"
        )
        write(
            f"handled: {orders['in_order']} in order, {orders['after_gap']} after a gap, {orders['late']} late, "
            f"{orders['unsequenced']} unsequenced"
        )
        if not tally.all_taken:
            write(f"NOT TAKEN: answers {dict(tally.answers)}, unanswered {dict(tally.unanswered)}")
        elif not comparison.good:
            write(
                f"WRONG: {comparison.missing} not handled, {comparison.repeated} handled twice, "
                f"{comparison.misplaced} out of order"
            )
        else:
            write("every event reached the handler once, each session in order")
        return tally.all_taken and comparison.good

    def _record_planned(self, plan: SessionPlan) -> None:
        for send in plan.sends:
            event = send.event
            self._sessions.add(event.session_uuid)
            if not send.duplicate:
                self._sent[event.session_uuid, event.event_name, event.number] += 1

    def _record_handled(self, handled: HandledEvent) -> None:
        if handled.session_uuid in self._sessions:
            # With one sequence for both, recording events are in the lane of the others.
            self._handled.append(handled._replace(recording=handled.recording and not self._shared))
            self._progress.set()

    async def _wait_until_handled(self, stop: asyncio.Event) -> None:
        """Wait until as many events were handled as were sent, `stop` is set, or the time is up."""
        stopped = asyncio.create_task(stop.wait())
        try:
            async with asyncio.timeout(self._handled_timeout_s):
                while len(self._handled) < self._sent.total() and not stop.is_set():
                    self._progress.clear()
                    moved = asyncio.create_task(self._progress.wait())
                    await asyncio.wait((stopped, moved), return_when=asyncio.FIRST_COMPLETED)
                    moved.cancel()
        except TimeoutError:
            pass
        finally:
            stopped.cancel()
