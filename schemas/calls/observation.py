"""An observation: what one handled event says about its session, small enough to be kept until the session is over.

Pure. Whoever keeps observations decides what stands in them for the parties' numbers: the timeline keeps tokens, call
summaries the numbers themselves.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol

import msgspec

from maskline.schemas.events import Event, RecordingEvent, UnknownEvent
from maskline.schemas.privacy import redact

OBSERVATION_VERSION: Final = 1

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

TEXT_MAX_CHARS: Final = 512
"""Of a text that is kept of an event (a cause, a URL, a name): Plivo's have some 200 at most. More is cut, so that what
is kept of a session has a bound."""

MISSING_MAX: Final = 1_000
"""Missing and skipped numbers kept of one event, as many as one release names."""

Order = Literal["in_order", "after_gap", "late", "unsequenced"]


class ObservedContext(Protocol):
    """What `observe` takes of a handler's `Context`."""

    @property
    def sequence_number(self) -> int | None: ...  # noqa: D102 - as in Context
    @property
    def order(self) -> Order: ...  # noqa: D102
    @property
    def missing(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def run(self) -> int: ...  # noqa: D102
    @property
    def replayed(self) -> bool: ...  # noqa: D102
    @property
    def idempotency_key(self) -> str: ...  # noqa: D102
    @property
    def entry_id(self) -> str: ...  # noqa: D102
    @property
    def received_at(self) -> datetime: ...  # noqa: D102

    skipped: tuple[int, ...]


class Observation(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """One event, as a session's record keeps it. Times are milliseconds since the epoch."""

    version: int = OBSERVATION_VERSION
    idempotency_key: str
    """Observations with one key are of the same callback."""
    entry_id: str
    event_name: str
    number: int | None = None
    run: int = 0
    recording: bool = False
    """It tells of a recording."""
    own_lane: bool = False
    """Its number counts in the recordings' own lane, not among the calls' events."""
    order: Order = "unsequenced"
    missing: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    replayed: bool = False
    received_at_ms: int = 0
    event_timestamp_ms: int | None = None
    """EventTimestamp, None where it cannot be read."""
    first_party: str | None = None
    """FirstParty, or From: the number, or what the keeper has put in its place."""
    second_party: str | None = None
    """SecondParty, or To, likewise."""
    virtual_number: str | None = None
    pin_status: str | None = None
    pin_counter: int | None = None
    amount: str | None = None
    """The decimal number as text."""
    billed_duration: int | None = None
    """Seconds."""
    duration: int | None = None
    """Seconds."""
    cause: str | None = None
    code: int | None = None
    recording_uuid: str | None = None
    recording_url: str | None = None
    recording_duration: int | None = None
    """Seconds."""
    recording_start_ms: int | None = None
    recording_end_ms: int | None = None
    problems: tuple[str, ...] = ()
    """Plivo's names of the attributes that could not be read."""

    @property
    def at_ms(self) -> int:
        """When it happened, as far as is known: EventTimestamp, else when ingest received the callback."""
        return self.received_at_ms if self.event_timestamp_ms is None else self.event_timestamp_ms

    def __repr__(self) -> str:
        # The parties are left out: they may be real numbers.
        return f"Observation({self.idempotency_key}, {redact(self.event_name)})"


def observe(
    event: Event,
    ctx: ObservedContext,
    *,
    number_as: Callable[[str], str] | None = None,
    recording_shared: bool = False,
) -> Observation:
    """What an event says, for the record of its session.

    `number_as`: what to keep in place of a phone number, as `schemas.privacy.number_token`, of which other texts are
    cleared as well; None keeps numbers and texts as they are. `recording_shared`: recording events are numbered with
    the others (MASKLINE_RECORDING_SEQUENCE).
    """
    recorded: Any = event if isinstance(event, (RecordingEvent, UnknownEvent)) else None
    recording = is_recording(event.event_name)
    keep, text = (_cut, _cut) if number_as is None else (number_as, _without_numbers)
    return Observation(
        idempotency_key=ctx.idempotency_key,
        entry_id=ctx.entry_id,
        event_name=text(event.event_name),
        number=ctx.sequence_number,
        run=ctx.run,
        recording=recording,
        own_lane=recording and not recording_shared,
        order=ctx.order,
        missing=ctx.missing[:MISSING_MAX],
        skipped=ctx.skipped[-MISSING_MAX:],
        replayed=ctx.replayed,
        received_at_ms=_ms(ctx.received_at) or 0,
        event_timestamp_ms=_ms(event.event_timestamp),
        first_party=_kept(event.first_party or event.from_number, keep),
        second_party=_kept(event.second_party or event.to_number, keep),
        virtual_number=_kept(event.virtual_number, keep),
        pin_status=_kept(event.pin_authentication_status, text),
        pin_counter=_storable(event.pin_retry_counter),
        amount=None if event.amount is None else str(event.amount),
        billed_duration=_storable(event.billed_duration),
        duration=_storable(event.duration),
        cause=_kept(event.plivo_hangup_cause, text),
        code=_storable(event.plivo_hangup_cause_code),
        recording_uuid=None if recorded is None else _kept(recorded.recording_uuid, text),
        recording_url=None if recorded is None else _kept(recorded.recording_url, _cut),
        recording_duration=None if recorded is None else _storable(recorded.recording_duration),
        recording_start_ms=None if recorded is None else _ms(recorded.recording_start_time),
        recording_end_ms=None if recorded is None else _ms(recorded.recording_end_time),
        problems=event.problems,
    )


def is_recording(event_name: str) -> bool:
    """Whether an event tells of a recording, by its name."""
    return event_name.startswith("SessionRecording")


encode_observation: Final = msgspec.msgpack.Encoder().encode
"""Observation to its msgpack, an array."""

_decoder = msgspec.msgpack.Decoder(Observation)


def decode_observation(value: bytes) -> Observation:
    """Read what `encode_observation` wrote. Raises ValueError for anything else, and for another version."""
    try:
        observation = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not an observation: {error}") from None
    if observation.version != OBSERVATION_VERSION:
        raise ValueError(f"not an observation: version {observation.version}")
    return observation


def at(ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as a time in UTC."""
    return None if ms is None else EPOCH + timedelta(milliseconds=ms)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - EPOCH) // timedelta(milliseconds=1)


def _without_numbers(text: str) -> str:
    return _cut(redact(text))


def _kept(text: str | None, keep: Callable[[str], str]) -> str | None:
    return None if text is None else keep(text)


def _cut(text: str) -> str:
    return storable(text[:TEXT_MAX_CHARS])


def storable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _storable(number: int | None) -> int | None:
    """The number if msgpack can hold it."""
    return number if number is not None and -(2**63) <= number < 2**63 else None
