from collections.abc import Callable, Mapping
from datetime import datetime

from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import Event
from maskline.schemas.fastdecode.native import Templates
from maskline.worker.entries.decode import ArrivalOf, DecodeResult, StreamEntries

class EntryReader:
    def __init__(
        self,
        templates: Templates,
        arrival_of: ArrivalOf,
        timestamps_us: dict[datetime, int],
        recordings: frozenset[type[Event]],
        is_recording: Callable[[Event], bool],
        internal_refusal: Callable[[Exception], UndecodableEntryError],
    ) -> None: ...
    def decode_entries(
        self, entries: StreamEntries, recording_shared: bool, known: Mapping[str, object]
    ) -> DecodeResult: ...
