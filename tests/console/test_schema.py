import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from maskline.console.main import main
from maskline.console.schema.asyncapi import asyncapi_document
from maskline.console.schema.command import DOCUMENTS, as_text
from maskline.events import EVENT_TYPES, CallSummary, Event, RecordingEvent, UnknownEvent
from maskline.schemas.call_summary import encode_summary
from maskline.schemas.errors import ConfigError

FILES = Path(__file__).parents[2] / "docs" / "schema"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_file_in_the_docs_is_what_the_code_makes(name: str) -> None:
    written = (FILES / f"{name}.json").read_text()
    assert written == as_text(DOCUMENTS[name]()), "run `maskline schema --directory docs/schema`"


def test_no_other_file_lies_there() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(DOCUMENTS)


@pytest.mark.parametrize("name", ["events", "call-summary", "forward"])
def test_each_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENTS[name]())


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        DOCUMENTS[name](), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def checked(name: str, written: bytes) -> None:
    validator(name).validate(json.loads(written))


def full(kind: type[Event], **more: Any) -> Event:
    recording = {"recording_uuid": "r", "recording_duration": 3, "recording_start_time": NOW}
    return kind(
        session_uuid="s",
        event_timestamp=NOW,
        sequence_number=4,
        from_number="+14155550123",
        amount=Decimal("0.02"),
        duration=31,
        extra={"New": "1", "Twice": ["1", "2"]},
        problems=("PinRetryCounter",),
        **(recording if issubclass(kind, (RecordingEvent, UnknownEvent)) else {}),
        **more,
    )


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_every_event_is_valid_by_the_schema(kind: type[Event]) -> None:
    checked("events", msgspec.json.encode(full(kind)))
    checked("events", msgspec.json.encode(kind(session_uuid="s")))


def test_unknown_events_are_valid_and_what_is_no_event_is_not() -> None:
    checked("events", msgspec.json.encode(full(UnknownEvent, event_name="SessionNew")))
    for wrong in (b"{}", b'{"EventName": "SessionTimeout"}', b'{"EventName": "Other", "SessionUUID": "s"}'):
        with pytest.raises(jsonschema.ValidationError):
            checked("events", wrong)


def test_a_summary_is_valid_by_its_schema() -> None:
    summary = CallSummary(
        session_uuid="s", call=1, revision=1, ended_by="parties_hangup", complete=True, amount=Decimal("0.02")
    )
    checked("call-summary", encode_summary(summary))
    with pytest.raises(jsonschema.ValidationError):
        checked("call-summary", b'{"EventName": "CallSummary", "SessionUUID": "s"}')


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi_document()
    references = _references(document)
    assert references
    for reference in references:
        assert reference.startswith("#/")
        place: Any = document
        for step in reference[2:].split("/"):
            place = place[step]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [found for inner in value.values() for found in _references(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in _references(inner)]
    return []


def test_the_command_prints_one_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "forward"]) == 0
    assert capsys.readouterr().out == as_text(DOCUMENTS["forward"]())
    assert main(["schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(DOCUMENTS)


def test_the_command_writes_files(tmp_path: Path) -> None:
    assert main(["schema", "--directory", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{name}.json" for name in DOCUMENTS}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--directory"):
        main(["schema", "--directory", str(tmp_path / "file")])
