"""What the tests of `maskline session` share: callbacks of a session, and what Redis would have of them."""

from urllib.parse import urlencode

from msgspec.structs import replace

from maskline.console.session.facts import KeptCallback, LetterFacts, QueueFacts, SessionFacts, StreamFacts
from maskline.console.session.report import report_of
from maskline.console.session.standing import judge
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.entries.queue_item import ITEM_VERSION, QueueItem
from maskline.worker.ordering.reorder import Policy, SessionOrder
from maskline.worker.ordering.state import HandlerRetries

START_MS = 1_767_600_000_000  # 2026-01-05T08:00:00Z
FIRST, SECOND, VIRTUAL = "+14155550123", "+447700900456", "+12125550187"
POLICY = Policy(gap_timeout_ms=5_000, first_sequence=1, held_max=100)


def event(name, number=None, at_s=0, **values):
    """The parameters of a callback, stamped so many seconds after START_MS."""
    moment = START_MS + int(at_s * 1000)
    given = {
        "SessionUUID": "s1",
        "EventName": f"Session{name}",
        "EventTimestamp": str(moment),
        "SequenceNumber": "null" if number is None else str(number),
        "FirstParty": FIRST,
        "SecondParty": SECOND,
        "VirtualNumber": VIRTUAL,
    }
    return given | values


ANSWERED = [
    event("VirtualNumberAnswer", 1, 0),
    event("PinAuthenticationStatus", None, 4, PinAuthenticationStatus="failed", PinRetryCounter="1"),
    event("PinAuthenticationStatus", None, 9, PinAuthenticationStatus="success", PinRetryCounter="1"),
    event("SecondPartyInitiated", 2, 10),
    event("SecondPartyRing", 3, 12),
    event("SecondPartyAnswer", 4, 20),
    event("RecordingInitiated", 1, 21, RecordingUUID="r1"),
    event("SecondPartyHangup", 5, 212, PlivoHangupCause="Normal Hangup", PlivoHangupCauseCode="4000"),
    event("RecordingCompleted", 2, 213, RecordingUUID="r1", RecordingDuration="191"),
    event("FirstPartyHangup", 6, 214, PlivoHangupCause="Normal Hangup", PlivoHangupCauseCode="4000"),
    event("PartiesHangup", 7, 215, Amount="0.0220", BilledDuration="240", Duration="192"),
]
"""A call that was answered."""


def raw(parameters, received_ms=START_MS):
    form = "application/x-www-form-urlencoded"
    return RawCallback("POST", b"", form, urlencode(parameters).encode(), received_ms, "MA")


def kept(parameters, at_ms, progress="handled"):
    encoded = encode_callback(raw(parameters, at_ms))
    arrival = entry_decoder().arrival_of(f"{at_ms}-0", [CALLBACK_FIELD, encoded], False)
    return KeptCallback(arrival, "stream", progress)


def facts_of(*given, step_ms=1_000, **changes):
    """What Redis has of a session whose callbacks came so far apart: parameters, or KeptCallbacks."""
    callbacks = [
        it if isinstance(it, KeptCallback) else kept(it, START_MS + at * step_ms)
        for at, it in enumerate(given)
    ]
    values = {
        "session_uuid": "s1",
        "partition": 3,
        "group": "workers",
        "now_ms": START_MS + 300_000,
        "callbacks": callbacks,
        "stream": StreamFacts(len(callbacks), START_MS, False, f"{START_MS + 300_000}-0"),
    }
    return SessionFacts(**(values | changes))


def report(facts, policy=POLICY):
    return report_of(facts, judge(facts, policy, recording_shared=False))


def session_of_the_docs():
    """The session that docs/modules/timeline.md shows: a call that was billed, and one that waits for a number."""
    uuid, handler = "6f1c2b9e-4a7d-4c1e-9f53-0d7b8a2e1c44", "billing.settle_fare"
    second = [event("FirstPartyInitiated", 8, 900), event("FirstPartyRinging", 9, 901)]
    given = [it | {"SessionUUID": uuid} for it in [*ANSWERED[:7], ANSWERED[7], *ANSWERED[7:], *second]]
    callbacks = [kept(it, START_MS + at * 1_000) for at, it in enumerate(given)]
    order = SessionOrder()
    for callback in callbacks:
        order.arrive(callback.arrival, POLICY)
    waiting = event("SecondPartyInitiated", 11, 920, SessionUUID=uuid)
    callbacks.append(kept(waiting, START_MS + 920_000, "pending"))
    letter = DeadLetter(
        "workers", callbacks[7].entry.entry_id, "rejected", "Reject: no such ride", START_MS + 225_000, b"", uuid,
        "SessionSecondPartyHangup", sequence_number=5, handler=handler, attempts=1, parked=True,
    )  # fmt: skip
    item = QueueItem(ITEM_VERSION, callbacks[9].entry.entry_id, b"", "in_order", (), 0, START_MS)
    return facts_of(
        *callbacks,
        session_uuid=uuid,
        state=replace(order.state, retries={handler: HandlerRetries(5, parked=True)}),
        queues=[QueueFacts(handler, 5, [item], parked=True, parked_ms=START_MS + 225_000)],
        letters=[LetterFacts("17-1767600225000-0", letter)],
        now_ms=START_MS + 922_000,
    )
