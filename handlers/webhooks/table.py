"""One table `[[endpoint]]` of MASKLINE_FORWARD_CONFIG, as written: its keys, their types, bounds and defaults."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from maskline.schemas.forward_message import Numbers


class FileValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value that stands in a file of its own, such as a token."""

    file: str


class EndpointTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[endpoint]]`, as written. docs/modules/forward.md says what each key means."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
    url: str
    events: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*",)
    numbers: Numbers = "tokens"
    secrets: tuple[str, ...] = ()
    secret_files: tuple[str, ...] = ()
    headers: dict[str, str | FileValue] = {}
    ca_file: str | None = None
    allow_private: tuple[str, ...] = ()
    timeout_ms: Annotated[int, Meta(ge=100, le=300_000)] = 10_000
    concurrency: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    rate: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    retries: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    give_up_after_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 86_400
    on_give_up: Literal["park", "skip"] = "park"
