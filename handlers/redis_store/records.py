"""The record of a session, and changes of it. Pure: `apply_change` does to a record what `lua/record.lua` does in
Redis, and a test holds the two together.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from maskline.schemas.calls.observation import Observation, decode_observation, encode_observation

OBSERVATION_PREFIX: Final = b"o:"
"""Fields of observations; the idempotency key follows."""
ADDED_PREFIX: Final = b"c:"
"""Fields that the module adds; its own name follows."""

ANY_VERSION: Final = -1

Status = Literal["stored", "known", "full", "fenced", "changed", "early"]
"""`stored`: the record was changed. `known`: there was nothing to change. `full`: the observation was counted, not
kept. `fenced`: a later owner of the session has written. `changed`: the record has another version than the caller
knows. `early`: the session is not due."""


class Record(msgspec.Struct, frozen=True):
    """What is kept of a session."""

    token: int = 0
    """The greatest fencing token that has written."""
    version: int = 0
    """Grows with every change; 0 where nothing is kept."""
    count: int = 0
    """Observations that are kept."""
    beyond: int = 0
    """Those that were not kept, as there was no room."""
    observations: dict[str, Observation] = {}
    """By idempotency key."""
    added: dict[str, bytes] = {}
    """What the module has added, by its own names."""
    unreadable: int = 0
    """Observations of another release, which are passed over."""


class EmittedEntry(NamedTuple):
    """Something that a module adds to the record, and emits to the partition's stream."""

    name: str
    """In `Record.added`."""
    value: bytes
    entry: bytes
    """The msgpack of a RawCallback; empty to emit nothing."""


class RecordChange(NamedTuple):
    """A change of a record."""

    observation: Observation | None
    token: int = 0
    """`ctx.fencing_token`; 0 for a change by someone who owns no session."""
    version: int = ANY_VERSION
    """The record's version that the change follows from; ANY_VERSION if it follows from none."""
    emissions: tuple[EmittedEntry, ...] = ()
    due_in_ms: int | None = None
    """When the session is to be looked at again if nothing more comes; -1 for never, None: as it is."""
    only_if_due: bool = False
    """Change nothing unless the session's due time has come."""


class Stored(NamedTuple):
    """What became of a change."""

    status: Status
    version: int
    """The record's version now."""
    now_ms: int
    """The server's time."""
    record: Record | None = None
    """The record, where the status is `changed`."""


def read_record(fields: Mapping[bytes, bytes]) -> Record:
    """The record in the fields of its hash."""
    observations: dict[str, Observation] = {}
    unreadable = 0
    for name, value in fields.items():
        if name.startswith(OBSERVATION_PREFIX):
            try:
                observation = decode_observation(value)
            except ValueError:
                unreadable += 1
                continue
            observations[observation.idempotency_key] = observation
    return Record(
        int(fields.get(b"token", 0)),
        int(fields.get(b"version", 0)),
        int(fields.get(b"count", 0)),
        int(fields.get(b"beyond", 0)),
        observations,
        {
            name.removeprefix(ADDED_PREFIX).decode(): value
            for name, value in fields.items()
            if name.startswith(ADDED_PREFIX)
        },
        unreadable,
    )


def observation_field(observation: Observation) -> bytes:
    """The field that an observation has in the hash."""
    return OBSERVATION_PREFIX + observation.idempotency_key.encode("utf-8", "surrogatepass")


def fenced_off(record: Record, token: int) -> bool:
    """Whether a writer with this token is one that has lost the session."""
    return 0 < token < record.token


def apply_change(
    record: Record, change: RecordChange, *, observations_max: int, now_ms: int
) -> tuple[Record, Stored]:
    """The record after a change, and what became of the change; what is emitted and due is the caller's business."""
    if fenced_off(record, change.token):
        return record, Stored("fenced", record.version, now_ms)
    if change.version not in (ANY_VERSION, record.version):
        return record, Stored("changed", record.version, now_ms, record)
    status: Status = "known"
    observations, count, beyond = record.observations, record.count, record.beyond
    one = change.observation
    if one is not None and one.idempotency_key not in observations:
        if count < observations_max:
            status, count = "stored", count + 1
            observations = {**observations, one.idempotency_key: one}
        else:
            status, beyond = "full", beyond + 1
    if change.emissions and status == "known":
        status = "stored"
    added = {**record.added, **{emission.name: emission.value for emission in change.emissions}}
    version = record.version if status == "known" else record.version + 1
    after = msgspec.structs.replace(
        record,
        token=max(record.token, change.token),
        version=version,
        count=count,
        beyond=beyond,
        observations=observations,
        added=added,
    )
    return after, Stored(status, version, now_ms)


def encoded_observation(observation: Observation) -> bytes:
    """The value that an observation has in the hash."""
    return encode_observation(observation)
