"""Makes callbacks as a test writes them: by the attributes that handlers see."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from maskline.schemas.callback import RawCallback
from maskline.schemas.parameters import FORM_TYPE

SESSION_UUID: Final = "5e551011-0000-4000-8000-000000000000"
"""The session of callbacks that name none."""

_SPELLINGS: Final = {
    "session_uuid": "SessionUUID",
    "from_number": "From",
    "to_number": "To",
    "recording_uuid": "RecordingUUID",
    "recording_url": "RecordingURL",
    "recording_resource_url": "RecordingResourceURL",
}
"""Attributes that Plivo does not spell as their names in camel case."""


def callback(event_name: str, **attributes: object) -> dict[str, str]:
    """The parameters of a callback, from attributes as handlers see them: `from_number=`, `billed_duration=`, …

    None stands for an absent one. Names in Plivo's own spelling are taken as they are. The session is SESSION_UUID
    unless one is given.
    """
    given = {"event_name": event_name, "session_uuid": SESSION_UUID, **attributes}
    return {
        _SPELLINGS.get(name, name if name[:1].isupper() else name.title().replace("_", "")): str(value)
        for name, value in given.items()
        if value is not None
    }


def raw_callback(given: Mapping[str, str] | RawCallback, received_at_ms: int) -> RawCallback:
    """The callback as ingest would store it. `given`: its parameters, by Plivo's names, or all of it."""
    if isinstance(given, RawCallback):
        return given
    return RawCallback("POST", b"", FORM_TYPE, urlencode(given).encode(), received_at_ms, "")
