"""The settings of handler modules that ship, by module. `Settings` has them beside its own."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from maskline.schemas.settings.archive_types import ARCHIVE_KEYS, ARCHIVE_URL
from maskline.schemas.settings.postgres_types import POSTGRES_URL, SCHEMA_NAME
from maskline.schemas.settings.url_types import API_URL
from maskline.schemas.settings.value_types import (
    FUNCTION,
    MINUTE_MS,
    PATH,
    YEAR_S,
    Description,
    choice,
    size,
    whole,
)


class ModuleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the handler modules that ship are set up with; each module's page in `docs/modules/` says more."""

    archive_url: Annotated[
        str,
        Description(
            ARCHIVE_URL,
            "`maskline.handlers.archive`: where the segments go: a folder, or `s3://bucket/prefix`, `gs://…`, `az://…`",
        ),
    ] = ""
    archive_key: Annotated[
        tuple[bytes, ...],
        Description(
            ARCHIVE_KEYS,
            "encrypts the segments of the archive; several keys, comma-separated: the first writes, all read",
        ),
    ] = ()
    archive_numbers: Annotated[
        Literal["plain", "tokens"],
        Description(
            choice("plain", "tokens"),
            "phone numbers in the archive: as they came (`plain`), or the tokens of the logs in their place",
        ),
    ] = "plain"
    archive_segment_max_bytes: Annotated[
        # A reader holds a whole segment in memory.
        int,
        Description(
            size(1 << 16, 64 << 20), "a segment of the archive is closed at so many bytes of callbacks"
        ),
    ] = 8 << 20
    archive_segment_max_age_ms: Annotated[
        # Handlers wait for their segment: their time limit, and a stop's, must be longer.
        int,
        Description(whole(1, MINUTE_MS), "and at the latest so long after its first callback"),
    ] = 5000
    call_summary_ttl_s: Annotated[
        int,
        Description(
            whole(1, YEAR_S),
            "`maskline.handlers.call_summary`: what is kept of a session is forgotten after this silence",
        ),
    ] = 604_800
    call_silence_s: Annotated[
        int,
        Description(
            whole(1, YEAR_S),
            "`maskline.handlers.call_summary`: a call whose end did not arrive is over after this silence",
        ),
    ] = 14_400
    expire_after_call: Annotated[
        Literal["off", "answered", "any"],
        Description(
            choice("off", "answered", "any"),
            "`maskline.handlers.expire` ends a session after its first call that was `answered`, or after `any` call",
        ),
    ] = "off"
    expire_pin_failures: Annotated[
        int,
        Description(
            whole(0, 100), "`maskline.handlers.expire` ends a session after so many wrong PINs; 0: never"
        ),
    ] = 0
    expire_function: Annotated[
        str,
        Description(
            FUNCTION,
            "`maskline.handlers.expire` ends a session where this function of yours, `module:function`, returns true",
        ),
    ] = ""
    plivo_api_url: Annotated[
        str, Description(API_URL, "Plivo's REST API, which `maskline.handlers.expire` calls")
    ] = "https://api.plivo.com"
    forward_config: Annotated[
        Path | None,
        Description(
            PATH, "`maskline.handlers.forward`: the TOML file with the endpoints, as tables `[[endpoint]]`"
        ),
    ] = None
    postgres_url: Annotated[
        str,
        Description(
            POSTGRES_URL,
            "where `maskline.handlers.postgres` stores events: `postgresql://user@host/database`; several "
            "hosts, comma-separated, are tried until one takes writes",
        ),
    ] = ""
    postgres_schema: Annotated[str, Description(SCHEMA_NAME, "the schema that has its tables and views")] = (
        "maskline"
    )
    postgres_retention_days: Annotated[
        # A century: whoever wants more wants 0.
        int,
        Description(
            whole(0, 36_500), "it drops a day's events, and older calls, after so many days; 0 keeps all"
        ),
    ] = 0
    postgres_numbers: Annotated[
        Literal["tokens", "plain"],
        Description(
            choice("tokens", "plain"),
            "what it stores of From, To, FirstParty and SecondParty: `tokens`, as logs show them, or the numbers",
        ),
    ] = "tokens"
    timeline_ttl_s: Annotated[
        int,
        Description(
            whole(1, YEAR_S),
            "`maskline.handlers.timeline`: how long a session's timeline is kept after its last event",
        ),
    ] = 604_800
