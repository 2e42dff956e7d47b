"""Simulated sessions with their truth, and what of them a worker's handler would observe after losses and delays.

The truth of a call is taken from the plan, before anything is lost: every call that `console.simulate.sessions` plays
ends with its SessionPartiesHangup.
"""

import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from maskline.console.simulate.sessions import SessionOptions, SimulatedEvent, make_session
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.calls.observation import Observation, observe
from maskline.schemas.parameters import FORM_TYPE
from maskline.schemas.values import read_time
from maskline.worker.api.context import Context
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.ordering.reorder import Policy, Release, SessionOrder
from maskline.worker.ordering.state import NEW_SESSION

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME_MS = 2**62


class Truth(NamedTuple):
    """One call as it was played."""

    amount: Decimal
    duration_s: int
    billed_duration_s: int
    answered: bool
    pins: int
    recordings: int
    first: int
    """Places of its first event and of its SessionPartiesHangup in the plan."""
    last: int


def truth_of(events: list[SimulatedEvent]) -> list[Truth]:
    """The calls of a planned session."""
    calls: list[Truth] = []
    names: list[str] = []
    first = 0
    for place, event in enumerate(events):
        names.append(event.event_name)
        if event.event_name != "SessionPartiesHangup":
            continue
        told = event.parameters
        failed = sum(
            one.parameters.get("PinAuthenticationStatus") == "failed" for one in events[first : place + 1]
        )
        calls.append(
            Truth(
                Decimal(told["Amount"]),
                int(told["Duration"]),
                int(told["BilledDuration"]),
                "SessionSecondPartyAnswer" in names,
                failed,
                sum(name in ("SessionRecordingInitiated", "SessionRecordingFailed") for name in names),
                first,
                place,
            )
        )
        names, first = [], place + 1
    return calls


class Delivery(msgspec.Struct, frozen=True):
    """What happens to a session's callbacks on their way."""

    losses: float = 0.0
    late: float = 0.0
    """A share that comes minutes after, beyond every gap timeout."""
    displaced_s: float = 3.0
    """Each of the others comes up to so much later."""


class Arrived(NamedTuple):
    """A session with what arrived of it."""

    events: list[SimulatedEvent]
    arrived: set[int]
    """Places in the plan of the events that arrived."""
    observations: list[Observation]
    """In the order in which a handler got them."""


def deliver(seed: int, index: int, options: SessionOptions, delivery: Delivery) -> Arrived:
    """Play session `index` through losses, delays, and the worker's own decoding and order."""
    events = make_session(seed, index, options)
    rng = random.Random(f"{seed}:{index}:delivery")
    coming: list[tuple[int, int]] = []
    for place, event in enumerate(events):
        if rng.random() < delivery.losses:
            continue
        delay_s = rng.uniform(0, delivery.displaced_s)
        if rng.random() < delivery.late:
            delay_s = rng.uniform(30, 600)
        sent_ms = (read_time(event.parameters["EventTimestamp"]) - EPOCH).total_seconds() * 1000
        coming.append((int(sent_ms + delay_s * 1000), place))
    coming.sort()
    shared = options.recording_sequence == "shared"
    observations = in_order([(ms, events[place].parameters) for ms, place in coming], options, shared=shared)
    return Arrived(events, {place for _, place in coming}, observations)


def in_order(
    coming: list[tuple[int, dict[str, str]]], options: SessionOptions, *, shared: bool
) -> list[Observation]:
    """What a handler observes of callbacks that come at these times, in milliseconds."""
    decoder, order = entry_decoder(), SessionOrder(NEW_SESSION)
    policy = Policy(5_000, options.first_sequence, 256)
    releases: list[Release] = []
    for count, (ms, parameters) in enumerate(coming):
        raw = RawCallback("POST", b"", FORM_TYPE, urlencode(parameters).encode(), ms, "")
        arrival = decoder.arrival_of(f"{ms}-{count}", (CALLBACK_FIELD, encode_callback(raw)), shared)
        releases += (one for one in order.arrive(arrival, policy) if isinstance(one, Release))
    releases += (one for one in order.expire(END_OF_TIME_MS, policy) if isinstance(one, Release))
    return [
        observe(release.arrival.payload.event, Context(release, "calls", 1, 1), recording_shared=shared)
        for release in releases
    ]
