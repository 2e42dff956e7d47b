"""The archive as its handlers see it: keeps callbacks, and returns once they are durable."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from maskline.handlers.segments.record import ArchivedCallback, encode_record
from maskline.handlers.segments.stores import open_store
from maskline.handlers.segments.tokens import with_tokens
from maskline.handlers.segments.writer import SegmentBounds, SegmentWriter
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import partition_of
from maskline.schemas.settings import Settings, load_settings

CONCURRENCY_MIN: Final = 1_024
"""Below it a segment has so few callbacks that its file costs more than they do. docs/modules/archive.md says 4,096."""

LATE_MS: Final = 60_000
"""What is so old has waited long enough: after an outage a session's events follow each other, each in a segment of its
own, and the handler comes up again as they succeed."""

_log = structlog.get_logger("maskline.handler")


class CallbackArchive:
    """Keeps raw callbacks in segments. `partitions`: of the installation. `tokens`: in place of phone numbers."""

    def __init__(self, writer: SegmentWriter, partitions: int, *, tokens: bool) -> None:
        self._writer = writer
        self._partitions = partitions
        self._tokens = tokens

    async def keep(self, session_uuid: str, entry_id: str, callback: RawCallback, *, alone: bool) -> None:
        """Return once the callback is durable. `alone`: it comes by itself, so it does not wait for others; nor does
        one that was received LATE_MS ago.

        Raises ArchiveError if it is not certain to be: it may be in the archive then, or not.
        """
        kept = with_tokens(callback) if self._tokens else callback
        record = ArchivedCallback(partition_of(session_uuid, self._partitions), entry_id, kept)
        soon = alone or time.time_ns() // 1_000_000 - callback.received_at_ms > LATE_MS
        await self._writer.keep(encode_record(record), callback.received_at_ms, soon=soon)


@asynccontextmanager
async def open_archive(settings: Settings | None = None) -> AsyncIterator[CallbackArchive]:
    """The archive that the settings name. Raises ConfigError if they name none, or it cannot be used."""
    settings = settings or load_settings()
    if not settings.archive_url:
        raise ConfigError("MASKLINE_ARCHIVE_URL is not set: a folder, or s3://bucket/prefix, gs://…, az://…")
    writer = SegmentWriter(
        open_store(settings.archive_url, write=True),
        SegmentBounds(
            settings.archive_segment_max_bytes,
            settings.archive_segment_max_age_ms,
            max(settings.concurrency // 2, 1),
        ),
        group=settings.group,
        numbers=settings.archive_numbers,
        key=settings.archive_key[0] if settings.archive_key else None,
    )
    _warn(settings)
    try:
        yield CallbackArchive(writer, settings.partitions, tokens=settings.archive_numbers == "tokens")
    finally:
        await writer.close()


def _warn(settings: Settings) -> None:
    """Say what makes the archive, or what stands beside it, slow."""
    if len(settings.handlers) > 1:
        _log.warning(
            "archive shares its group",
            handlers=[*settings.handlers],
            hint="each event waits for its segment: give the archive a group of its own (MASKLINE_GROUP)",
        )
    if settings.concurrency < CONCURRENCY_MIN:
        _log.warning(
            "archive segments will be small",
            concurrency=settings.concurrency,
            hint="set MASKLINE_CONCURRENCY of the archive's workers to 4096",
        )
