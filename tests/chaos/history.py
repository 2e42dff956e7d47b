"""The record of a chaos run: one fact a line, written down by whoever saw it, JSON with a tag.

Rules
- A fact says what somebody saw, never what it means: `checker` alone judges.
- Times are `time.monotonic()`, which is one clock for all processes of a machine.
- A line is one write, and begins with a line break of its own: a process killed in the middle of one tears that
  line and no other. Torn lines are counted; there can be no more of them than kills.
- A callback is known by its `tag`, a parameter that the traffic puts into every callback and that maskline knows
  nothing of: so that what the record says does not stand on the keys that are being tested.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

RUNNER_FILE = "history.jsonl"
"""What the runner recorded: answers, faults, dead letters."""
HANDLERS_FILE = "handlers.jsonl"
"""What the handlers of all workers recorded."""


class HandlerTerms(msgspec.Struct, frozen=True):
    """What a handler was registered with."""

    events: list[str] = []
    """The events that it subscribes to; empty for all."""
    attempts: int | None = None
    """How often it is tried before it gives an event up; None where time alone decides."""
    skips: bool = False
    """What comes behind an event that it gave up goes on (`skip`); else it waits (`park`)."""
    held: bool = False
    """It may be paused, or down, for a while."""


class Terms(msgspec.Struct, frozen=True, tag="terms"):
    """The parameters of the run, written before it began."""

    handlers: dict[str, HandlerTerms]
    lease_s: float
    partitions: int
    first_sequence: int = 1
    replays_all: bool = False
    """In the end everything is mended, and every dead letter replayed."""
    gap_timeout_s: float = 0.0
    """MASKLINE_GAP_TIMEOUT_MS."""


class Answer(msgspec.Struct, frozen=True, tag="asked"):
    """One request and its answer."""

    tag: str
    session: str
    number: int | None
    event: str
    node: str
    began: float
    ended: float
    status: int
    """0 where there was no answer."""


class Began(msgspec.Struct, frozen=True, tag="began"):
    """A handler was called."""

    call: str
    """Identifies this call, for its end."""
    pid: int
    handler: str
    tag: str
    session: str
    number: int | None
    event: str
    order: str
    missing: list[int]
    run: int
    attempt: int
    key: str
    token: int
    at: float
    skipped: list[int] = []
    replayed: bool = False


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A handler has returned, failed or been cancelled; a call that a kill cut short has no such line."""

    call: str
    outcome: str
    """`done`, `failed`, `rejected` or `cancelled`."""
    at: float


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """A fault that the nemesis injected; it ends when everything is as before."""

    kind: str
    """`kill`, `stop`, `restart`, `delay`, `cut`, `half_open`, `reset`, …; `stall`: the machine by itself; `away`: the
    server that a handler calls."""
    target: str
    """`worker-0`, `ingest-1`, `redis`, …"""
    pid: int
    """Of the process that suffered it."""
    began: float
    ended: float


class Exit(msgspec.Struct, frozen=True, tag="exit"):
    """A process has ended."""

    target: str
    pid: int
    code: int
    asked: str
    """`kill`, `term`, or empty where nobody had asked for it."""
    at: float


class Recovery(msgspec.Struct, frozen=True, tag="recovery"):
    """How long it took until something worked again."""

    kind: str
    """`takeover` of a killed worker's partitions, `answers` of an ingest node after a fault, `drained` at the end."""
    target: str
    began: float
    took_s: float


class DeadLetter(msgspec.Struct, frozen=True, tag="letter"):
    """A dead letter, read at the end of the run."""

    tag: str
    handler: str | None
    code: str
    missing: list[int] = []
    """The numbers that were given up just before it."""


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """An event that was set aside and still waited for its handler at the end of the run."""

    tag: str
    handler: str
    parked: bool
    """Behind a dead letter of its session and handler."""
    missing: list[int] = []
    """The numbers that were given up just before it."""


class Discarded(msgspec.Struct, frozen=True, tag="discarded"):
    """An operator is about to discard an event's dead letter of one handler."""

    tag: str
    handler: str
    at: float


class Rerun(msgspec.Struct, frozen=True, tag="rerun"):
    """An operator is about to run a session's kept callbacks again."""

    session: str
    at: float


class Operated(msgspec.Struct, frozen=True, tag="operated"):
    """An operator's command has ended."""

    command: str
    began: float
    ended: float
    code: int
    said: str
    """The last that it wrote to its error output; empty where it ended well."""


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A spool notice of an ingest node, read at the end of the run."""

    node: str
    partition: int
    at: float
    held: bool
    """It held spooled callbacks of the partition; else none any more."""


class Leftover(msgspec.Struct, frozen=True, tag="left"):
    """What a consumer group had not handled of a partition at the end; None where there was no group."""

    partition: int
    pending: int | None
    lag: int | None


Fact = (
    Terms
    | Answer
    | Began
    | Ended
    | Fault
    | Exit
    | Recovery
    | DeadLetter
    | Waiting
    | Discarded
    | Rerun
    | Operated
    | Leftover
    | Said
)

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Fact)


class History:
    """Facts by kind, each kind in the order in which it was added."""

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._facts: dict[type, list[Any]] = {}
        self.torn = 0
        for fact in facts:
            self.add(fact)

    def add(self, fact: Fact) -> None:
        self._facts.setdefault(type(fact), []).append(fact)

    def of(self, kind: type[Any]) -> list[Any]:
        return self._facts.get(kind, [])

    @property
    def terms(self) -> Terms:
        """Raises LookupError where the run wrote none."""
        return self.of(Terms)[0]

    def facts(self) -> Iterator[Fact]:
        for facts in self._facts.values():
            yield from facts


class Writer:
    """Appends facts to a file; several processes may have the same one open."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, fact: Fact) -> None:
        os.write(self._descriptor, b"\n" + _encode(fact) + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


class Tail:
    """Reads a file of facts as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.torn = 0

    def read(self) -> list[Fact]:
        """The facts since the last call; a line that is still without its end is left for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        facts: list[Fact] = []
        for line in whole.split(b"\n"):
            if not line:
                continue
            try:
                facts.append(_decoder.decode(line))
            except msgspec.DecodeError:
                self.torn += 1
        return facts


def read(directory: Path) -> History:
    """All that was written down in a run's directory."""
    history = History()
    for name in (RUNNER_FILE, HANDLERS_FILE):
        tail = Tail(directory / name)
        for fact in tail.read():
            history.add(fact)
        history.torn += tail.torn
    return history
