"""Makes the callbacks of a simulated masking session, as Plivo would number them. Pure and seeded.

Rules: the same seed and index give the same callbacks, byte for byte, independent of other sessions. Every phone number
is from a range reserved for fiction. Every attribute is spelled as Plivo documents it; one without a value is absent,
or null in one of the spellings that Plivo's pages leave open.

Strategy: a `_Script` goes through the calls of a session with a virtual clock and records each event as it happens.
The old vocabulary has From and To and ends legs with Hangup; the new one has FirstParty, SecondParty, Initiated,
Complete and Failed.
"""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

import msgspec

Lane = Literal["status", "recording", "unsequenced"]
Vocabulary = Literal["old", "new", "both"]

START: Final = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
"""When the first session begins on the virtual clock: fixed, so that everything follows from the seed."""
SESSION_SPACING_S: Final = 7
CALL_PAUSE_S: Final = (30, 900)
"""Between two calls of a session: never less than the steps of a call, so that calls do not overlap."""
STEP_S: Final = (1, 12)
TALK_S: Final = (5, 400)
SESSION_EXPIRY_S: Final = 3600

AREA_CODES: Final = ("201", "212", "312", "415", "503", "617", "702", "808")
NULL_SPELLINGS: Final = (None, "", "null", "None", "NULL", "none")
"""Spellings of null in a form; None is an absent key."""
TIME_FORMATS: Final = ("%Y-%m-%d %H:%M:%S +0000 UTC", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f")

NORMAL_HANGUP: Final = ("Normal Hangup", 4000)
FAILURES: Final = (
    ("No Answer", 3000),
    ("Busy Line", 3010),
    ("Rejected", 3020),
    ("Destination Out Of Service", 2010),
)

PIN_SHARE: Final = 0.35
FAILURE_SHARE: Final = 0.15
RECORDED_SHARE: Final = 0.6
RECORDING_FAILURE_SHARE: Final = 0.12
REPLACED_SHARE: Final = 0.1
UPDATED_SHARE: Final = 0.12
TIMEOUT_SHARE: Final = 0.9


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of sessions to make. The defaults fit the defaults of a worker."""

    calls_min: int = 1
    calls_max: int = 3
    first_sequence: int = 1
    recording_sequence: Literal["own", "shared"] = "own"
    restart_numbering: bool = False
    """Whether SequenceNumber starts again with each call."""
    vocabulary: Vocabulary = "both"
    """With `both`, each session draws one."""


class SimulatedEvent(NamedTuple):
    """One callback as Plivo makes it, before anything is lost, displaced or repeated."""

    parameters: dict[str, str]
    """In the order of the request."""
    lane: Lane
    number: int | None
    run: int
    """0, 1, …: how often the numbering of its lane had started again."""
    opens: bool
    """Whether it has the first number of its lane in its run."""

    @property
    def event_name(self) -> str:
        """Its EventName."""
        return self.parameters["EventName"]

    @property
    def session_uuid(self) -> str:
        """Its SessionUUID."""
        return self.parameters["SessionUUID"]

    @property
    def ends_session(self) -> bool:
        """Whether it is the SessionTimeout."""
        return self.event_name == "SessionTimeout"


def make_session(seed: int, index: int, options: SessionOptions) -> list[SimulatedEvent]:
    """The callbacks of session `index`, in the order in which Plivo numbers them."""
    # A string seed is hashed by SHA-512, so that it is the same in every process.
    return _Script(random.Random(f"{seed}:{index}"), index, options).write()  # noqa: S311  not for secrets


class _Script:
    """Records the events of one session."""

    def __init__(self, rng: random.Random, index: int, options: SessionOptions) -> None:
        self.rng = rng
        self.options = options
        self.now = START + timedelta(seconds=index * SESSION_SPACING_S, microseconds=rng.randrange(1_000_000))
        self.started = self.now
        self.events: list[SimulatedEvent] = []
        self.next: dict[str, int] = {}
        self.runs: dict[str, int] = {}
        self.session_uuid = self.make_uuid()
        self.new_words = rng.random() < 0.5 if options.vocabulary == "both" else options.vocabulary == "new"
        self.time_format = rng.choice(TIME_FORMATS)
        self.plus = rng.choice(("+", ""))
        self.first = self.make_number()
        self.second = self.make_number()
        self.virtual = self.make_number()
        self.pin_failures = 0

    def write(self) -> list[SimulatedEvent]:
        options, rng = self.options, self.rng
        for call in range(rng.randint(options.calls_min, options.calls_max)):
            if call:
                self.pause(CALL_PAUSE_S)
                if options.restart_numbering:
                    self.next.clear()
            self.write_call()
            if rng.random() < UPDATED_SHARE:
                self.write_event("SessionParamUpdate", lane="unsequenced")
            if rng.random() < REPLACED_SHARE:
                # Plivo does not say whether this one is numbered: it comes both ways.
                self.virtual = self.make_number()
                self.write_event("SessionVirtualNumberReplaced", lane=rng.choice(("status", "unsequenced")))
        if rng.random() < TIMEOUT_SHARE:
            self.now = max(self.now, self.started + timedelta(seconds=SESSION_EXPIRY_S))
            self.write_event("SessionTimeout", lane="unsequenced")
        return self.events

    # A call

    def write_call(self) -> None:
        inbound = self.rng.random() < 0.6
        if inbound:
            self.write_event("SessionVirtualNumberAnswer")
            self.write_pin()
        elif not self.write_first_leg():
            return
        if not self.write_second_leg():
            self.hang_up("First", NORMAL_HANGUP, 0)
            self.write_event("SessionPartiesHangup", self.costs(0))
            return
        recording = self.write_recording_start()
        before = self.now
        self.pause(TALK_S)
        talked_s = int((self.now - before).total_seconds())
        sides = self.rng.sample(("First", "Second"), 2)
        self.hang_up(sides[0], NORMAL_HANGUP, talked_s)
        if recording:
            self.write_recording_end(recording, before, talked_s)
        self.hang_up(sides[1], NORMAL_HANGUP, talked_s)
        self.write_event("SessionPartiesHangup", self.costs(talked_s) | _cause(NORMAL_HANGUP))

    def write_first_leg(self) -> bool:
        """Dial the first party; False if that fails and the call is over."""
        if self.new_words:
            self.write_event("SessionFirstPartyInitiated")
        self.write_event("SessionFirstPartyRinging")
        if self.rng.random() < FAILURE_SHARE:
            cause = self.rng.choice(FAILURES)
            self.fail("First", cause)
            self.write_event("SessionPartiesHangup", self.costs(0) | _cause(cause))
            return False
        self.write_event("SessionFirstPartyAnswer")
        self.write_pin()
        return True

    def write_second_leg(self) -> bool:
        if self.new_words:
            self.write_event("SessionSecondPartyInitiated")
        self.write_event("SessionSecondPartyRing")
        if self.rng.random() < FAILURE_SHARE:
            self.fail("Second", self.rng.choice(FAILURES))
            return False
        self.write_event("SessionSecondPartyAnswer")
        return True

    def fail(self, side: str, cause: tuple[str, int]) -> None:
        if self.new_words:
            self.write_event(f"Session{side}PartyFailed", _cause(cause))
        else:
            self.hang_up(side, cause, 0)

    def hang_up(self, side: str, cause: tuple[str, int], talked_s: int) -> None:
        name = f"Session{side}Party{'Complete' if self.new_words else 'Hangup'}"
        self.write_event(
            name, {"Duration": str(talked_s), "BilledDuration": _billed(talked_s)} | _cause(cause)
        )

    def write_pin(self) -> None:
        if self.rng.random() >= PIN_SHARE:
            return
        # The counter runs on through the session, so that no two reports of a session are equal.
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            self.pin_failures += 1
            self.write_pin_event("failed")
        self.write_pin_event(self.rng.choice(("success", "AuthorizedCaller")))

    def write_pin_event(self, status: str) -> None:
        self.write_event(
            "SessionPinAuthenticationStatus",
            {"PinAuthenticationStatus": status, "PinRetryCounter": str(self.pin_failures)},
            lane="unsequenced",
        )

    def write_recording_start(self) -> str:
        """The recording's UUID; empty if there is none."""
        if self.rng.random() >= RECORDED_SHARE:
            return ""
        if self.rng.random() < RECORDING_FAILURE_SHARE:
            self.write_event("SessionRecordingFailed", lane="recording")
            return ""
        recording = self.make_uuid()
        self.write_event("SessionRecordingInitiated", {"RecordingUUID": recording}, lane="recording")
        return recording

    def write_recording_end(self, recording: str, began: datetime, lasted_s: int) -> None:
        suffix = self.rng.choice((".mp3", ".wav"))
        self.write_event(
            "SessionRecordingCompleted",
            {
                "RecordingUUID": recording,
                "RecordingURL": f"https://media.example.com/Recording/{recording}{suffix}",
                "RecordingResourceURL": f"https://api.example.com/v1/Account/SIMULATED/Recording/{recording}/",
                "RecordingDuration": str(lasted_s),
                "RecordingStartTime": began.strftime(self.time_format),
                "RecordingEndTime": self.now.strftime(self.time_format),
                "RecordingFormat": suffix,
            },
            lane="recording",
        )

    def costs(self, talked_s: int) -> dict[str, str]:
        minutes = int(_billed(talked_s)) // 60
        return {
            "Amount": f"{minutes * self.rng.choice((0.0055, 0.01, 0.0175)):.5f}",
            "BilledDuration": _billed(talked_s),
            "Duration": str(talked_s),
        }

    # An event

    def write_event(self, name: str, values: dict[str, str] | None = None, *, lane: Lane = "status") -> None:
        self.pause(STEP_S)
        if lane == "recording" and self.options.recording_sequence == "shared":
            lane = "status"
        number, opens = None, False
        if lane != "unsequenced":
            opens = lane not in self.next
            if opens:
                # Runs are counted by lane: a call without a recording starts no run of recordings.
                self.runs[lane] = self.runs.get(lane, -1) + 1
            number = self.next.get(lane, self.options.first_sequence)
            self.next[lane] = number + 1
        parties = ("FirstParty", "SecondParty") if self.new_words else ("From", "To")
        attributes: dict[str, str | None] = {
            "EventName": name,
            "EventTimestamp": self.now.strftime(self.time_format),
            "SessionUUID": self.session_uuid,
            parties[0]: self.first,
            parties[1]: self.second,
            "VirtualNumber": self.virtual,
            "PinAuthenticationStatus": self.draw_null(),
            "Amount": self.draw_null(),
            "PlivoHangupCause": self.draw_null(),
            "SequenceNumber": self.draw_null() if number is None else str(number),
            **(values or {}),
        }
        parameters = {key: value for key, value in attributes.items() if value is not None}
        self.events.append(SimulatedEvent(parameters, lane, number, self.runs.get(lane, 0), opens))

    def draw_null(self) -> str | None:
        return self.rng.choice(NULL_SPELLINGS)

    def pause(self, span_s: tuple[int, int]) -> None:
        self.now += timedelta(seconds=self.rng.randint(*span_s), microseconds=self.rng.randrange(1000))

    def make_uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def make_number(self) -> str:
        """+1 XXX 555 01xx or +44 7700 900xxx: both ranges are reserved for fiction and reach nobody."""
        if self.rng.random() < 0.7:
            return f"{self.plus}1{self.rng.choice(AREA_CODES)}55501{self.rng.randrange(100):02}"
        return f"{self.plus}447700900{self.rng.randrange(1000):03}"


def _billed(talked_s: int) -> str:
    """Plivo bills by the started minute."""
    return str(-(-talked_s // 60) * 60)


def _cause(cause: tuple[str, int]) -> dict[str, str]:
    return {"PlivoHangupCause": cause[0], "PlivoHangupCauseCode": str(cause[1])}
