"""Archives for tests: segments with callbacks as a worker would have kept them."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from process_kit import callback

from maskline.handlers.segments.record import ArchivedCallback, encode_record
from maskline.handlers.segments.segment import Numbers
from maskline.handlers.segments.stores import open_store
from maskline.handlers.segments.writer import SegmentBounds, SegmentWriter
from maskline.schemas.callback import decode_callback

Kept = tuple[str, bytes]
"""The ID of an entry and the msgpack of its callback."""

ALL_AT_ONCE = SegmentBounds(1 << 30, 60_000, 1 << 30)


def write_archive(
    folder: Path | str,
    kept: Iterable[Kept],
    *,
    per_segment: int = 50,
    key: bytes | None = None,
    numbers: Numbers = "plain",
) -> None:
    """Write segments with so many callbacks each."""
    some = [*kept]

    async def write() -> None:
        writer = SegmentWriter(
            open_store(str(folder), write=True), ALL_AT_ONCE, group="archive", key=key, numbers=numbers
        )
        for start in range(0, len(some), per_segment):
            records = [
                ArchivedCallback(0, entry_id, decode_callback(value))
                for entry_id, value in some[start : start + per_segment]
            ]
            waiting = [
                asyncio.create_task(writer.keep(encode_record(one), one.callback.received_at_ms))
                for one in records
            ]
            await asyncio.sleep(0)
            await writer.close()
            await asyncio.gather(*waiting)

    asyncio.run(write())


def session_callbacks(
    session: str, *numbers: int, start_ms: int = 1_700_000_000_000, padding: int = 0
) -> list[Kept]:
    """Callbacks of a session, a second apart in this order, with so many bytes more each."""
    more = {"Padding": "x" * padding} if padding else {}
    return [
        (f"{start_ms + 1_000 * place}-0", callback(session, number, **more))
        for place, number in enumerate(numbers)
    ]
