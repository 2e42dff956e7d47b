"""A harness for tests of handler modules: callbacks in, in any order; what the handlers got, out. No Redis, no network.

    async def test_fare_is_settled_once():
        async with Harness("my_handlers") as harness:
            hangup = callback("SessionSecondPartyHangup", sequence_number=2, amount="0.0170")
            await harness.feed(hangup, callback("SessionSecondPartyAnswer", sequence_number=1), hangup)
        assert [call.event.sequence_number for call in harness.calls] == [1, 2]
        assert harness.duplicates == 1

Decoding, ordering, dispatch and what follows a failure are the worker's own (`in_memory_worker`). Time is the
harness's: it stands still until `pass_time`. Unless `retry_waits` is set, retries come without their waits, and a
handler without `retries=` gives an event up after ten attempts. As in a worker, every attempt begins with a copy of the
context that the resources were opened in, which is a copy of the one that the harness was entered in.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from os import PathLike
from types import ModuleType
from typing import Any, Final, Literal, Self

from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.dead_letter_view import DeadLetterView
from maskline.schemas.errors import ConfigError
from maskline.schemas.handler_control import Pause
from maskline.schemas.jobs import Selection
from maskline.schemas.session_export import SessionExport
from maskline.worker.api.binding import Table, bind, bind_dead
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.resources import Resources
from maskline.worker.counters import Counters
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.entries.dead_letter import DeadLetter, public_id
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.testing import in_use
from maskline.worker.testing.callbacks import SESSION_UUID, raw_callback
from maskline.worker.testing.calls import Call, DeadCall, dead_recorded, recorded
from maskline.worker.testing.exports import read_export, settings_of
from maskline.worker.testing.in_memory_worker import InMemoryWorker
from maskline.worker.testing.kept import Kept
from maskline.worker.testing.parts import PARTITION, Arrived, Clock, Parts, WorkerSettings, at_once
from maskline.worker.testing.picture import Picture, draw
from maskline.worker.testing.resources import check_overridden, to_open

START_MS: Final = 1_767_225_600_000
"""Where the harness's time begins: 2026-01-01 00:00:00 UTC."""

PASS_TIME_MAX_S: Final = 100 * 366 * 86_400
"""A hundred years at a time: what is longer is a mistake, as milliseconds for seconds are."""

CLOSE_S: Final = 60.0
"""For closing the resources. One that takes longer is cancelled, and fails the test."""


class Harness:
    """Runs handler modules on callbacks that a test feeds. An async context manager: it opens and closes the resources.

    `modules`: dotted names, `.py` paths or modules. The settings mean the same as those of the same name, and have the
    same defaults (docs/settings.md); `replay` of a session takes those that are not given here from its file:

    - `gap_timeout_ms`: how long, by the harness's time, an event waits for a missing number.
    - `first_sequence`: the number that opens a session.
    - `recording_sequence`: `own` or `shared`, whether recording events are numbered apart.
    - `late`: `deliver` or `dead`, what becomes of events that come too late.
    - `held_max`: events of a session that wait at a time, at most.
    - `concurrency`: sessions with a handler under way at a time.
    - `ignored_parameters`: names that do not count where two callbacks are compared.
    - `dead_ttl_s`: after how long what waits behind a dead letter is given up too.

    `retry_waits`: failures are handled as in a worker, in the harness's time: retries wait for `pass_time`, a handler
    may be down, `concurrency=` and `rate=` of `@on` hold. There is no chance in it: every wait is as long as it may be.

    `resources`: by the names of resources, what handlers get in their place. Those resources are not opened.

    Raises ConfigError where a module cannot be loaded, and, when it is entered, what a resource failed to open with.
    """

    def __init__(
        self,
        *modules: str | ModuleType,
        gap_timeout_ms: int | None = None,
        first_sequence: int | None = None,
        recording_sequence: str | None = None,
        late: str | None = None,
        held_max: int | None = None,
        concurrency: int | None = None,
        ignored_parameters: Iterable[str] | None = None,
        dead_ttl_s: int | None = None,
        retry_waits: bool = False,
        resources: Mapping[str, object] | None = None,
    ) -> None:
        self.calls: list[Call] = []
        """Every attempt, in the order they ended."""
        self.dead_calls: list[DeadCall] = []
        """Every call of a handler of dead letters, in the order they ended."""
        self._handlers = load_handlers(modules)
        self._overridden = dict(resources or {})
        check_overridden(self._overridden, self._handlers.resources)
        given = {
            "gap_timeout_ms": gap_timeout_ms,
            "first_sequence": first_sequence,
            "recording_sequence": recording_sequence,
            "late": late,
            "held_max": held_max,
            "concurrency": concurrency,
            "ignored_parameters": None if ignored_parameters is None else frozenset(ignored_parameters),
            "dead_ttl_s": dead_ttl_s,
            "retry_waits": retry_waits,
        }
        self._given: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._clock = Clock(START_MS)
        self._kept = Kept()
        self._counters = Counters()
        self._arrivals: list[Arrived] = []
        self._called: list[tuple[int, Call]] = []
        self._paused: dict[str, Pause] = {}
        self._entered: InMemoryWorker | None = None

    # Its life

    async def __aenter__(self) -> Self:
        in_use.HARNESSES.append(self)
        self._resources = Resources()
        try:
            specs = to_open(self._handlers.resources, self._overridden, self)
            opened = await self._resources.open(specs) | self._overridden
        except ConfigError as error:
            await self._resources.close(CLOSE_S)
            raise error.__cause__ or error from None
        self._parts = self._make_parts(opened)
        self._settings = WorkerSettings(**self._given)
        self._entered = InMemoryWorker(self._parts, self._settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._worker.stop("the test is over")
        errors = await self._resources.close(CLOSE_S)
        if errors:
            raise (
                errors[0]
                if len(errors) == 1
                else BaseExceptionGroup("resources were not closed well", errors)
            )

    @property
    def entered(self) -> bool:
        """Whether it is open, or was."""
        return self._entered is not None

    async def restart(self) -> None:
        """Crash the worker as kill -9 does, and let another one go on with what was committed.

        What was not comes again, with the same idempotency keys and a greater fencing token: handlers under way are
        cancelled. What modules and resources have in memory stays.
        """
        before = self._worker
        await before.stop("a crash")
        self._entered = InMemoryWorker(
            self._parts,
            self._settings,
            token=before.token + 1,
            known=before.gates.reports(),
            paused=self._paused,
        )
        await self._settle()

    # Callbacks in

    async def feed(self, *callbacks: Mapping[str, str] | RawCallback, crash: bool = False) -> None:
        """Feed callbacks in this order, at the harness's time; return when no handler has anything left to do.

        Each is the parameters of a callback, by Plivo's names, as `callback` makes them, or a whole RawCallback.
        `crash`: the worker crashes when the handlers are through, before anything of that is committed (`restart`): so
        all of it is handled twice.
        """
        for given in callbacks:
            self._kept.append(encode_callback(raw_callback(given, self._clock.now_ms)), self._clock.now_ms)
        if crash:
            await self._worker.settle(commit=False)
            await self.restart()
        else:
            await self._settle()

    async def pass_time(self, seconds: float) -> None:
        """Move the harness's time on, and run what falls due on the way, in order: gaps are given up, what was set
        aside is tried again. Raises ValueError unless `seconds` is 0 to PASS_TIME_MAX_S: time does not go back.
        """
        if not 0 <= seconds <= PASS_TIME_MAX_S:
            raise ValueError(f"pass_time takes 0 to {PASS_TIME_MAX_S:,} seconds, not {seconds}")
        await self._pass_to(self._clock.now_ms + round(seconds * 1000))

    async def replay(self, *what: str | PathLike[str] | SessionExport | DeadLetter | DeadLetterView) -> None:
        """Replay sessions from files of `maskline session UUID --export FILE`, or dead letters of this harness.

        A session comes with its own arrival times and settings, where the harness was not given others; what it then
        waits for is given up. Dead letters run again together, as by one `maskline dead replay`.

        Raises ConfigError for a file that is no export, OSError for one that cannot be read, and ValueError where a
        session needs other settings than the harness has begun with, or a letter cannot run again.
        """
        for one in what:
            if isinstance(one, (DeadLetter, DeadLetterView)):
                self._worker.operator.replay(self._letter_id(one))
            else:
                await self._replay_session(one if isinstance(one, SessionExport) else read_export(one))
        await self._settle()

    async def discard(self, *letters: DeadLetter | DeadLetterView) -> None:
        """Give dead letters up for good, as `maskline dead discard` does: what waits behind them goes on.

        Raises ValueError if one is not there.
        """
        for letter in letters:
            self._worker.operator.discard(self._letter_id(letter))
        await self._settle()

    async def run_again(
        self, session_uuid: str = SESSION_UUID, *, handler: str | None = None, event_name: str | None = None
    ) -> None:
        """Run the callbacks of a session again that were handled, in order, as `maskline replay --session` does.

        `handler`, `event_name`: only for this handler, only events of this name. Raises ValueError while events of the
        session wait for a missing number.
        """
        self._worker.operator.run_again(Selection(session=session_uuid, handler=handler, event=event_name))
        await self._settle()

    async def pause(self, handler: str, *, why: str = "") -> None:
        """Pause a handler, as `maskline pause` does: its events are set aside. Raises ValueError if there is none."""
        self._require_handler(handler)
        self._paused[handler] = Pause(self._clock.now_ms, why, "harness")
        self._worker.gates.set_paused(self._paused)

    async def resume(self, handler: str) -> None:
        """Let a paused handler go on, and run what has gathered. Raises ValueError if there is none."""
        self._require_handler(handler)
        self._paused.pop(handler, None)
        self._worker.gates.set_paused(self._paused)
        await self._settle()

    # What came of it

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What handlers gave up, or what could not be read, in that order; not what was replayed or discarded since."""
        return [*self._kept.letters.values()]

    @property
    def duplicates(self) -> int:
        """How many callbacks were dropped because the same one had come before."""
        return self._counters.duplicates

    @property
    def waiting(self) -> int:
        """How many events wait for a missing number, or for the opening of a call."""
        return self._worker.partition.held

    @property
    def set_aside(self) -> int:
        """How many events wait to be tried by a handler: for a retry, for one before them, for the end of a pause."""
        return self._kept.queues.set_aside

    @property
    def parked(self) -> int:
        """How many events wait behind a dead letter of their session, as their handler parks."""
        return self._kept.queues.parked

    def state(self, handler: str) -> Literal["up", "down", "recovering", "paused"]:
        """What a handler is. Raises ValueError if there is none of this name."""
        self._require_handler(handler)
        return "paused" if handler in self._paused else self._worker.gates.state(handler)

    @property
    def now_ms(self) -> int:
        """The harness's time, milliseconds since the epoch."""
        return self._clock.now_ms

    @property
    def now(self) -> datetime:
        """The harness's time."""
        return datetime.fromtimestamp(self._clock.now_ms / 1000, UTC)

    def order_table(self) -> str:
        """What arrived in which order, what each handler got, what waits and why, and the dead letters, as text.

        It fits 80 columns and shows tokens in place of phone numbers. The pytest plugin adds it to a failed test.
        """
        worker = self._entered
        return draw(
            Picture(
                self._arrivals,
                self._called,
                self._kept,
                [] if worker is None else worker.partition.gaps.waiting_sessions(),
                None if worker is None else worker.gates,
                start_ms=self._arrivals[0].at_ms if self._arrivals else self._clock.now_ms,
                now_ms=self._clock.now_ms,
            )
        )

    # For twins of resources

    def emit(self, callback: RawCallback) -> None:
        """Append an entry to the stream: it is handled before the running `feed` or `pass_time` returns."""
        self._kept.append(encode_callback(callback), self._clock.now_ms)

    def call_at(self, at_ms: int, function: Callable[[], None]) -> None:
        """Call a plain function once the harness's time is `at_ms`."""
        self._clock.call_at(at_ms, function)

    # Inside

    @property
    def _worker(self) -> InMemoryWorker:
        if self._entered is None:
            raise RuntimeError("enter the harness first: `async with Harness(…) as harness:`")
        return self._entered

    def _make_parts(self, opened: dict[str, Any]) -> Parts:
        table: Table = {
            kind: tuple(
                recorded(
                    handler if self._given["retry_waits"] else at_once(handler),
                    self._note_call,
                )
                for handler in handlers
            )
            for kind, handlers in bind(self._handlers, opened).items()
        }
        dead = [
            dead_recorded(handler, self.dead_calls.append) for handler in bind_dead(self._handlers, opened)
        ]
        decoder = entry_decoder(self._given.get("ignored_parameters", frozenset()))
        context = self._resources.context
        return Parts(
            self._kept,
            self._clock,
            self._counters,
            table,
            DeadLetterCalls(dead, context, decoder),
            context,
            self._arrivals,
        )

    def _note_call(self, call: Call) -> None:
        self.calls.append(call)
        self._called.append((self._clock.now_ms, call))

    async def _settle(self) -> None:
        worker = None
        while worker is not self._worker:  # a crash meanwhile leaves the rest to the next
            worker = self._worker
            await worker.settle()

    async def _pass_to(self, at_ms: int) -> None:
        worker = None
        while worker is not self._worker:
            worker = self._worker
            await worker.pass_to(at_ms)

    async def _replay_session(self, export: SessionExport) -> None:
        if not export.callbacks:
            return
        first_ms = export.callbacks[0].at_ms
        settings = settings_of(export.settings, self._given)
        if not self._kept.stream:
            await self._worker.stop("a session is replayed")
            self._clock.now_ms, self._settings = first_ms, settings
            self._entered = InMemoryWorker(self._parts, settings, paused=self._paused)
        elif settings != self._settings:
            raise ValueError(
                "the session was put in order by other settings: replay it in a harness of its own"
            )
        shift_ms = max(self._clock.now_ms - first_ms, 0)
        for at_ms, those in groupby(export.callbacks, key=lambda one: one.at_ms + shift_ms):
            await self._pass_to(at_ms - 1)  # a gap that ends with this very ms is filled in time
            self._clock.now_ms = max(at_ms, self._clock.now_ms)
            await self.feed(*(one.callback for one in those))
        while (gap_ms := self._worker.next_gap_ms) is not None:
            await self._pass_to(max(gap_ms, self._clock.now_ms + 1))

    def _letter_id(self, letter: DeadLetter | DeadLetterView) -> str:
        for letter_id, known in self._kept.letters.items():
            if known is letter or (
                isinstance(letter, DeadLetterView) and letter.id == public_id(PARTITION, letter_id)
            ):
                return letter_id
        raise ValueError("the harness has no such dead letter, or it was replayed or discarded before")

    def _require_handler(self, handler: str) -> None:
        names = self._worker.gates.handlers
        if handler not in names:
            raise ValueError(f"no handler is called {handler}; there are: {', '.join(names)}")
