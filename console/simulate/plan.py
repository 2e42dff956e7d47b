"""Plans the requests of simulated sessions: losses, displacement, duplicates, and the order of sending. Pure.

Rules
- Only planned losses are missing; a duplicate equals the original byte for byte; within its session no callback is
  displaced by more than the window.
- SessionTimeout is sent when all earlier callbacks of its session are answered, as in reality it comes an hour later.
  If a displaced opening would look like a continuation (numbering that starts again, or at 0), openings are neither
  displaced nor lost, and are sent alone. Both work by `epoch`: a callback waits for all of lower epochs.
- At most `at_once` sessions are under way at a time, with one callback each a round. So a window of W callbacks spans
  at most (W + 1) x `at_once` requests, which `fit_to_rate` keeps far below the worker's gap timeout.

The plan is a function of the seed. Sessions are made as they are needed, so a million of them take no memory.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import msgspec

from maskline.console.simulate.sessions import SessionOptions, SimulatedEvent, make_session
from maskline.schemas.parameters import FORM_TYPE, JSON_TYPE, Parameters

DISPLACED_MAX_S: Final = 1.0
"""How late a displaced callback may come: far less than the gap timeout, 5 s by default."""
DUPLICATE_WINDOW: Final = 8
"""How many callbacks later a duplicate may come: within the 64 that a worker remembers for each session."""

WHOLE_ATTRIBUTES: Final = ("PinRetryCounter", "PlivoHangupCauseCode", "SequenceNumber")
"""Written as numbers, or null, in a JSON body."""


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a plan: the arguments of `maskline simulate`. Shares are 0 to 1."""

    seed: int
    sessions: int = 20
    shuffle: float = 0.3
    window: int = 4
    duplicates: float = 0.1
    losses: float = 0.0
    get: float = 0.1
    json_bodies: float = 0.05
    at_once: int = 16
    session: SessionOptions = SessionOptions()


class PlannedRequest(NamedTuple):
    """One request to make."""

    session: int
    epoch: int
    """The request waits until every callback of its session with a lower epoch is answered."""
    method: str
    query: str
    content_type: str
    body: bytes
    parameters: Parameters
    """The parameters of query and body, for the signature."""
    event: SimulatedEvent
    duplicate: bool


class SessionPlan(NamedTuple):
    """The requests of one session."""

    sends: list[PlannedRequest]
    """In the order in which they are sent."""
    lost: list[SimulatedEvent]
    """Events that are never sent."""

    @property
    def duplicates(self) -> int:
        """How many of the requests are duplicates."""
        return sum(send.duplicate for send in self.sends)


def fit_to_rate(options: PlanOptions, rate: float) -> PlanOptions:
    """Reduce `window` and `at_once` so that DISPLACED_MAX_S holds at `rate` callbacks a second; 0 is no limit."""
    if rate <= 0:
        return options
    requests = int(rate * DISPLACED_MAX_S)
    window = max(0, min(options.window, requests - 1))
    at_once = max(1, min(options.at_once, requests // (window + 1)))
    return msgspec.structs.replace(options, window=window, at_once=at_once)


def plan_session(index: int, options: PlanOptions) -> SessionPlan:
    """The plan of session `index`."""
    events = make_session(options.seed, index, options.session)
    rng = random.Random(f"{options.seed}:{index}:way")  # noqa: S311  not for secrets
    openings_alone = options.session.restart_numbering or options.session.first_sequence == 0
    sent: list[SimulatedEvent] = []
    lost: list[SimulatedEvent] = []
    for event in events:
        keep = (openings_alone and event.opens) or rng.random() >= options.losses
        (sent if keep else lost).append(event)
    order = [(event, False) for event in _displace(rng, sent, openings_alone=openings_alone, options=options)]
    order = _repeat(rng, order, options.duplicates)
    requests: dict[int, PlannedRequest] = {}
    sends: list[PlannedRequest] = []
    epoch = 0
    for event, duplicate in order:
        alone = not duplicate and _is_sent_alone(event, openings_alone=openings_alone)
        epoch += alone
        first = requests.get(id(event))
        if first is None:
            first = requests[id(event)] = _request(rng, index, event, options)
        sends.append(first._replace(epoch=epoch, duplicate=duplicate))
        epoch += alone
    return SessionPlan(sends, lost)


def plan_sessions(options: PlanOptions) -> Iterator[SessionPlan]:
    """The plans of all sessions, each made when it is asked for."""
    return (plan_session(index, options) for index in range(options.sessions))


def interleave(plans: Iterable[SessionPlan], options: PlanOptions) -> Iterator[PlannedRequest]:
    """All requests in the order of sending: rounds with one callback of each session under way."""
    rng = random.Random(f"{options.seed}:rounds")  # noqa: S311  not for secrets
    waiting = iter(plans)
    under_way: list[Iterator[PlannedRequest]] = []
    while True:
        under_way += (iter(plan.sends) for plan in islice(waiting, options.at_once - len(under_way)))
        if not under_way:
            return
        rng.shuffle(under_way)
        going_on: list[Iterator[PlannedRequest]] = []
        for sends in under_way:
            send = next(sends, None)
            if send is not None:
                going_on.append(sends)
                yield send
        under_way = going_on


def expectation(plan: SessionPlan, options: PlanOptions) -> dict[str, Any]:
    """The events that a handler should get of a session if none is later than the gap timeout: a line of `--expect`.

    Numbered events are listed lane by lane in handling order, unsequenced ones in the order of sending.
    """
    sent = [send.event for send in plan.sends if not send.duplicate]
    lanes: dict[str, list[dict[str, Any]]] = {"status": [], "recording": []}
    for lane, shown in lanes.items():
        numbered = sorted(
            (event.run, event.number, event.event_name)
            for event in sent
            if event.lane == lane and event.number is not None
        )
        run, following = 0, options.session.first_sequence
        for event_run, number, name in numbered:
            if event_run != run:
                run, following = event_run, options.session.first_sequence
            missing = list(range(following, number))
            following = number + 1
            shown.append(
                {
                    "event_name": name,
                    "sequence_number": number,
                    "run": run,
                    "order": "after_gap" if missing else "in_order",
                    "missing": missing,
                }
            )
    some = (sent or plan.lost)[0]
    return {
        "session_uuid": some.session_uuid,
        **lanes,
        "unsequenced": [event.event_name for event in sent if event.lane == "unsequenced"],
        "duplicates": plan.duplicates,
        "lost": [{"event_name": event.event_name, "sequence_number": event.number} for event in plan.lost],
    }


def _is_sent_alone(event: SimulatedEvent, *, openings_alone: bool) -> bool:
    return event.ends_session or (openings_alone and event.opens)


def _displace(
    rng: random.Random, events: list[SimulatedEvent], *, openings_alone: bool, options: PlanOptions
) -> list[SimulatedEvent]:
    """Move a share of the events up to `window` places later, never across one that is sent alone."""
    keyed: list[tuple[int, float, SimulatedEvent]] = []
    segment = 0
    for place, event in enumerate(events):
        alone = _is_sent_alone(event, openings_alone=openings_alone)
        segment += alone
        later = 0.0
        if options.window and rng.random() < options.shuffle:
            later = rng.randint(1, options.window) + 0.5
        keyed.append((segment, place + later, event))
        segment += alone
    keyed.sort(key=lambda entry: entry[:2])
    return [event for _, _, event in keyed]


def _repeat(
    rng: random.Random, order: list[tuple[SimulatedEvent, bool]], share: float
) -> list[tuple[SimulatedEvent, bool]]:
    """Send a share of the events once more, up to DUPLICATE_WINDOW places later."""
    tie = count()
    keyed: list[tuple[float, int, tuple[SimulatedEvent, bool]]] = []
    for place, (event, _) in enumerate(order):
        keyed.append((place, next(tie), (event, False)))
        if rng.random() < share:
            keyed.append((place + rng.randint(0, DUPLICATE_WINDOW) + 0.5, next(tie), (event, True)))
    keyed.sort(key=lambda entry: entry[:2])
    return [entry for _, _, entry in keyed]


def _request(rng: random.Random, session: int, event: SimulatedEvent, options: PlanOptions) -> PlannedRequest:
    pairs = list(event.parameters.items())
    draw = rng.random()
    if draw < options.get:
        return PlannedRequest(
            session, 0, "GET", urlencode(pairs), "", b"", Parameters(pairs, [], None), event, False
        )
    if draw < options.get + options.json_bodies:
        members = _members(event.parameters)
        body = json.dumps(members, separators=(",", ":")).encode()
        return PlannedRequest(
            session, 0, "POST", "", JSON_TYPE, body, Parameters([], [], members), event, False
        )
    body = urlencode(pairs).encode()
    return PlannedRequest(session, 0, "POST", "", FORM_TYPE, body, Parameters([], pairs, None), event, False)


def _members(parameters: dict[str, str]) -> dict[str, Any]:
    """The members of a JSON body: whole numbers as numbers, or null if the text is none."""
    members: dict[str, Any] = dict(parameters)
    for name in WHOLE_ATTRIBUTES:
        if name in members:
            text = parameters[name]
            members[name] = int(text) if text.isdigit() else None
    return members
