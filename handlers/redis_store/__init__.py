"""Keeps records of sessions in the worker's Redis, for `handlers.timeline` and `handlers.call_summary`.

A record is a hash in the hash slot of the session's partition: an observation for each event, and what the module adds.
One atomic script writes it (`lua/record.lua`); a write with a smaller fencing token than the greatest one is refused.
"""

from maskline.handlers.redis_store.records import (
    EmittedEntry,
    Record,
    RecordChange,
    Stored,
    apply_change,
    fenced_off,
    read_record,
)
from maskline.handlers.redis_store.store import RecordStore, RedisRecordStore

__all__ = [
    "EmittedEntry",
    "Record",
    "RecordChange",
    "RecordStore",
    "RedisRecordStore",
    "Stored",
    "apply_change",
    "fenced_off",
    "read_record",
]
