"""The state of a session's order: the position of its numbering, and its last releases. Redis keeps its msgpack.

Rules: a state is immutable and complete. A new owner that loads the state committed with a release, and is fed the
unhandled arrivals, decides as the old owner would have. Held arrivals are no part of it: they are in the group's
pending list.

Strategy: the last releases are kept in rings of plain bytes, so that one more release is a concatenation, and a state
encodes at once.
"""

from collections.abc import Callable
from struct import Struct
from typing import Annotated, Final

import msgspec

STATE_VERSION: Final = 1

RELEASED_REMEMBERED: Final = 64
"""Releases of a lane, and unsequenced ones of a session, whose repeats are recognised. Plivo repeats a callback within
a minute, in which a session has a dozen events; 64 cover several calls, and take 1 KiB for a lane."""

SKIPPED_MAX: Final = 64
"""Numbers of a session that are remembered as skipped by one handler."""

FINGERPRINT_BYTES: Final = 8
NUMBER_BYTES: Final = 8
RELEASED_BYTES: Final = NUMBER_BYTES + FINGERPRINT_BYTES

_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""One less than a number that fits into msgpack's largest, so that the number after it can be written and read too."""


class LaneState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One numbering of a session: its status events, or its recordings where they count apart."""

    next: _Natural | None = None
    """The number that is released at once; None while the run has released nothing yet."""
    run: _Natural = 0
    """How often numbering started again."""
    opening: _Natural | None = None
    """The first number released in this run."""
    released: bytes = b""
    """The last RELEASED_REMEMBERED released in any run, oldest first: number (big-endian) and fingerprint."""
    top_us: int | None = None
    """The latest EventTimestamp released; what goes while a run is ending counts as earlier than its end."""
    floor_us: int | None = None
    """An arrival stamped earlier belongs to a run that ended. None in run 0."""
    ending_us: int | None = None
    """The run is ending: the opening with this EventTimestamp starts the next one, as soon as what this one still held
    is released. Only visible if a worker died halfway through that."""


class HandlerRetries(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The retry queue of one handler in a session, and what that handler never handled of the session."""

    waiting: _Natural = 0
    """Events in the queue."""
    parked: bool = False
    """The queue waits behind a dead letter; it may be empty."""
    skipped: Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=SKIPPED_MAX)] = ()
    """The last numbers that the handler never handled, oldest first: given up with `skip`, or discarded."""

    @property
    def blocks(self) -> bool:
        """Whether later events of the session must queue up for this handler."""
        return self.parked or self.waiting > 0


class SessionState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Both lanes of a session, right after one release, as though nothing had arrived since."""

    version: int = STATE_VERSION
    status: LaneState = LaneState()
    recording: LaneState = LaneState()
    unsequenced: bytes = b""
    """Fingerprints of the last RELEASED_REMEMBERED released without a number, oldest first."""
    closed: bool = False
    """A SessionTimeout was released."""
    retries: dict[str, HandlerRetries] | None = None
    """By handler's name. None in nearly all states, and in every one that the rules of order make: the partition adds
    it to what it writes."""


class _Head(msgspec.Struct, frozen=True, array_like=True):
    version: int


NEW_SESSION: Final = SessionState()

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionState)
_head_decoder = msgspec.msgpack.Decoder(_Head)

_RELEASED_MAX_BYTES: Final = RELEASED_REMEMBERED * RELEASED_BYTES
_UNSEQUENCED_MAX_BYTES: Final = RELEASED_REMEMBERED * FINGERPRINT_BYTES


encode_state: Final[Callable[[SessionState], bytes]] = _encoder.encode


def decode_state(encoded: bytes) -> SessionState:
    """Read a state that `encode_state` wrote. Raises ValueError for anything else, and for another version."""
    try:
        state = _decoder.decode(encoded)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not a session state: {_newer(encoded) or error}") from None
    if state.version != STATE_VERSION:
        raise ValueError(
            f"not a session state: version {state.version}, and this release reads {STATE_VERSION}"
        )
    status, recording, unsequenced = state.status.released, state.recording.released, state.unsequenced
    if (
        len(status) % RELEASED_BYTES
        or len(recording) % RELEASED_BYTES
        or len(unsequenced) % FINGERPRINT_BYTES
    ):
        raise ValueError(
            f"not a session state: rings of {len(status)}, {len(recording)} and {len(unsequenced)} bytes"
        )
    return state


def _newer(encoded: bytes) -> str:
    """Names the version, if the state cannot be read because another release wrote it; else an empty text."""
    try:
        version = _head_decoder.decode(encoded).version
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return "" if version == STATE_VERSION else f"version {version}, and this release reads {STATE_VERSION}"


_pack_released = Struct(f">Q{FINGERPRINT_BYTES}s").pack


def remember_released(ring: bytes, number: int, fingerprint: bytes) -> bytes:
    """A lane's ring with one more release, without the oldest where there are RELEASED_REMEMBERED already."""
    return (ring + _pack_released(number, fingerprint))[-_RELEASED_MAX_BYTES:]


def was_released(ring: bytes, number: int, fingerprint: bytes) -> bool:
    """Whether a lane's ring has a release of this number with this fingerprint."""
    # Search for the fingerprint: random bytes are found, or found missing, much faster than a number's zeros.
    at = ring.find(fingerprint)
    while at >= 0:
        if at % RELEASED_BYTES == NUMBER_BYTES and _number_at(ring, at - NUMBER_BYTES) == number:
            return True
        at = ring.find(fingerprint, at + 1)
    return False


def was_number_released(ring: bytes, number: int) -> bool:
    """Whether a lane's ring has a release of this number, with any fingerprint."""
    return number in released_numbers(ring)


def released_numbers(ring: bytes) -> list[int]:
    """The numbers in a lane's ring, oldest first."""
    return [_number_at(ring, at) for at in range(0, len(ring), RELEASED_BYTES)]


def _number_at(ring: bytes, at: int) -> int:
    return int.from_bytes(ring[at : at + NUMBER_BYTES], "big")


def remember_unsequenced(ring: bytes, fingerprint: bytes) -> bytes:
    """A session's ring of unsequenced releases with one more, bounded as a lane's."""
    return (ring + fingerprint)[-_UNSEQUENCED_MAX_BYTES:]


def was_released_unsequenced(ring: bytes, fingerprint: bytes) -> bool:
    """Whether a session's ring of unsequenced releases has this callback."""
    at = ring.find(fingerprint)
    while at >= 0:
        if at % FINGERPRINT_BYTES == 0:
            return True
        at = ring.find(fingerprint, at + 1)
    return False
