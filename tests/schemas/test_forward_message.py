from typing import Any, get_type_hints

import msgspec

from maskline.schemas.events import ATTRIBUTES, UnknownEvent
from maskline.schemas.forward_message import EventData, ForwardMessage


def test_a_message_has_every_attribute_of_an_event_with_the_same_default() -> None:
    expected = dict.fromkeys(ATTRIBUTES) | {"extra": {}, "problems": ()}
    del expected["session_uuid"]
    fields = {field.name: field for field in msgspec.structs.fields(EventData)}
    assert set(fields) == {"session_uuid", *expected}
    assert {name: default_of(fields[name]) for name in expected} == expected


def test_its_attributes_have_the_types_of_an_events() -> None:
    event_hints = get_type_hints(UnknownEvent)
    for name, hint in get_type_hints(EventData).items():
        assert hint == event_hints[name], name


def test_the_schema_says_what_times_and_amounts_look_like() -> None:
    data = msgspec.json.schema(ForwardMessage)["$defs"]["EventData"]["properties"]
    assert {"type": "string", "format": "decimal"} in data["amount"]["anyOf"]
    assert data["event_timestamp"]["anyOf"][0]["format"] == "date-time"


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
