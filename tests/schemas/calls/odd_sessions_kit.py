"""Sessions as PLIVO's pages allow them beside those that `console.simulate` plays: another author's reading of them.

Calls in either direction, or dialled out to both; legs that fail; callers that give up; PINs tried again; a virtual
number that is replaced; timestamps that are whole seconds, absent, unreadable, or some of each; calls that follow each
other within seconds; callbacks that are sent again with a parameter more.
"""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

from calls_kit import in_order

from maskline.console.simulate.sessions import SessionOptions
from maskline.schemas.calls.observation import Observation

START = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)


class Odd(NamedTuple):
    new_names: bool = False
    first: int = 1
    restart: bool = False
    shared: bool = False
    stamps: Literal["seconds", "absent", "unreadable", "mixed"] = "seconds"
    pauses_s: tuple[float, ...] = (20, 60, 400)
    losses: float = 0.0
    sent_again: float = 0.0


class Played(NamedTuple):
    charge: tuple[Decimal, int, int]
    answered: bool
    pins: int
    done: int
    """The place of its SessionPartiesHangup."""


class OddSession:
    """One session: `events` as (seconds, parameters), and what its calls were."""

    def __init__(self, seed: int, odd: Odd) -> None:
        self.rng, self.odd = random.Random(f"{seed}:{odd}"), odd
        self.at_s, self.number, self.recording_number = 0.0, odd.first, odd.first
        self.virtual = "14155550100"
        self.events: list[tuple[float, dict[str, str]]] = []
        self.calls: list[Played] = []
        for _ in range(self.rng.randint(1, 4)):
            if odd.restart:
                self.number = self.recording_number = odd.first
            self.play_call()
            self.at_s += self.rng.choice(odd.pauses_s)

    def say(self, name: str, numbered: bool = True, **more: object) -> None:
        names = ("FirstParty", "SecondParty") if self.odd.new_names else ("From", "To")
        said = {"EventName": f"Session{name}", "SessionUUID": "odd", "VirtualNumber": self.virtual}
        said |= dict(zip(names, ("14155550123", "447700900456"), strict=True))
        if name.startswith("Recording") and not self.odd.shared:
            said["SequenceNumber"], self.recording_number = (
                str(self.recording_number),
                self.recording_number + 1,
            )
        elif numbered:
            said["SequenceNumber"], self.number = str(self.number), self.number + 1
        self.events.append((self.at_s, said | {key: str(value) for key, value in more.items()}))
        self.at_s += self.rng.choice((0.2, 1, 3, 8))

    def play_call(self) -> None:
        rng, new = self.rng, self.odd.new_names
        ring = {"First": "FirstPartyRinging", "Second": "SecondPartyRing"}
        caller = rng.choice(("First", "Second", None))
        dialled = "First" if caller == "Second" else "Second"
        pins = 0
        if caller:
            self.say("VirtualNumberAnswer")
            pins = rng.choice((0, 0, 1, 3))
            for count in range(pins):
                self.say(
                    "PinAuthenticationStatus",
                    False,
                    PinAuthenticationStatus="failed",
                    PinRetryCounter=count + 1,
                )
        else:
            if new:
                self.say("FirstPartyInitiated")
            self.say(ring["First"])
            self.say("FirstPartyAnswer")
        up, talk_s, answered = caller or "First", 0, False
        if rng.random() > 0.1:  # else the caller gives up
            if new:
                self.say(f"{dialled}PartyInitiated")
            self.say(ring[dialled])
            answered = rng.random() > 0.2
            if not answered:
                self.say(f"{dialled}Party{'Failed' if new else 'Hangup'}", Duration=0, BilledDuration=0)
        if answered:
            self.say(f"{dialled}PartyAnswer")
            if rng.random() < 0.5:
                self.say("RecordingInitiated", RecordingUUID=f"r-{len(self.calls)}")
            if rng.random() < 0.1:
                self.virtual = "14155550101"
                self.say("VirtualNumberReplaced", False)
            talk_s = rng.choice((1, 5, 30, 200))
            self.at_s += talk_s
        charge = (Decimal(rng.randint(1, 99_999)) / 10_000, talk_s, -(-talk_s // 60) * 60)
        ended = {"Duration": charge[1], "BilledDuration": charge[2]}
        legs = [up, dialled] if answered else [up]
        for leg in rng.sample(legs, len(legs)):
            self.say(f"{leg}Party{'Complete' if new else 'Hangup'}", Amount=charge[0] / 2, **ended)
        self.calls.append(Played(charge, answered, pins, len(self.events)))
        self.say("PartiesHangup", Amount=charge[0], **ended)

    def delivered(self) -> tuple[set[int], list[Observation]]:
        """The places of the events that arrived, and what a handler observed."""
        rng, odd, coming = self.rng, self.odd, []
        for place, (at_s, said) in enumerate(self.events):
            if rng.random() < odd.losses:
                continue
            stamps = rng.choice(("seconds", "absent", "unreadable")) if odd.stamps == "mixed" else odd.stamps
            moment = START + timedelta(seconds=int(at_s))
            stamp = {"seconds": f"{moment:%Y-%m-%d %H:%M:%S} +0000 UTC", "unreadable": "noon"}.get(stamps)
            stamped = said | ({"EventTimestamp": stamp} if stamp else {})
            ms = int((START.timestamp() + at_s + rng.uniform(0, 2)) * 1000)
            coming.append((ms, place, stamped))
            if rng.random() < odd.sent_again:
                coming.append((ms + rng.randint(100, 50_000), place, stamped | {"Attempt": "2"}))
        coming.sort(key=lambda one: one[:2])
        options = SessionOptions(first_sequence=1)
        observed = in_order([(ms, said) for ms, _, said in coming], options, shared=odd.shared)
        return {place for _, place, _ in coming}, observed
