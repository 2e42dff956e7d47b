"""The file of a session: any bytes come back as they were, and whatever else is given is one clear line."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.session_export import (
    CALLBACKS_MAX,
    ExportedCallback,
    ExportSettings,
    SessionExport,
    decode_export,
    encode_export,
)

TEXTS = st.text(st.characters(codec="utf-8"))
TIMES = st.integers(0, 2**53 - 1)
CALLBACKS = st.builds(
    RawCallback,
    TEXTS,
    st.binary() | TEXTS.map(str.encode),
    TEXTS,
    st.binary() | TEXTS.map(str.encode),
    TIMES,
    TEXTS,
    st.booleans(),
)
SETTINGS = st.builds(
    ExportSettings,
    gap_timeout_ms=st.integers(0, 10**9),
    first_sequence=st.integers(0, 10**9),
    recording_sequence=st.sampled_from(["own", "shared"]),
    late=st.sampled_from(["deliver", "dead"]),
    held_max=st.integers(1, 1_000),
    ignored_parameters=st.lists(TEXTS, max_size=3).map(tuple),
)


@st.composite
def exports(draw: st.DrawFn) -> SessionExport:
    times = sorted(draw(st.lists(TIMES, max_size=5)))
    return SessionExport(
        session_uuid=draw(TEXTS),
        settings=draw(SETTINGS),
        complete=draw(st.booleans()),
        callbacks=tuple(ExportedCallback(at_ms=at_ms, callback=draw(CALLBACKS)) for at_ms in times),
    )


@given(exports())
def test_an_export_is_read_as_it_was_written(export: SessionExport) -> None:
    encoded = encode_export(export)

    assert decode_export(encoded) == export
    assert json.loads(encoded)["maskline_session_export"] == 1


def _written(**changes: Any) -> bytes:
    callback: dict[str, Any] = {
        "at_ms": 2,
        "received_at_ms": 1,
        "method": "POST",
        "query": "",
        "content_type": "",
        "body": "EventName=SessionTimeout",
    }
    export = {"maskline_session_export": 1, "session_uuid": "ride-1", "callbacks": [callback, {**callback}]}
    for path, value in changes.items():
        if path.startswith("callback_"):
            callback[path.removeprefix("callback_")] = value
        else:
            export[path] = value
    return json.dumps(export).encode()


def test_a_file_needs_no_more_than_its_callbacks() -> None:
    export = decode_export(_written())

    assert export.settings == ExportSettings()
    assert export.callbacks[0].callback == RawCallback("POST", b"", "", b"EventName=SessionTimeout", 1, "")


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        (b"", "truncated"),
        (b"{}", "maskline_session_export"),
        (b"\xff\xfe", "not a session export"),
        (b"[" * 100_000, "not a session export"),
        (_written(maskline_session_export=2), "version 2, and this release reads 1"),
        (_written(settings={"gap_timeout": 5}), "unknown field `gap_timeout`"),
        (_written(settings={"late": "drop"}), "$.settings.late"),
        (_written(callback_at_ms="soon"), "$.callbacks[0].at_ms"),
        (_written(callback_at_ms=3), "`at_ms` of $.callbacks[1] is before"),
        (_written(callback_body_base64="AA=="), "$.callbacks[0] has both `body` and `body_base64`"),
        (_written(callback_query_base64="?", callback_query=None), "$.callbacks[0].query"),
        (_written(callbacks=[{"at_ms": 0}] * 2), "received_at_ms"),
    ],
)
def test_what_is_no_export_is_one_clear_line(encoded: bytes, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        decode_export(encoded)

    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bad_base64_is_named_with_its_place() -> None:
    written = json.loads(_written())
    del written["callbacks"][1]["body"]
    written["callbacks"][1]["body_base64"] = "é"

    with pytest.raises(ConfigError, match=r"`body_base64` of \$\.callbacks\[1\] is no base64"):
        decode_export(json.dumps(written).encode())


def test_the_number_of_callbacks_is_bounded() -> None:
    one = ExportedCallback(at_ms=0, callback=RawCallback("POST", b"", "", b"", 0, ""))

    with pytest.raises(ConfigError, match="10001 callbacks"):
        encode_export(SessionExport(session_uuid="", callbacks=(one,) * (CALLBACKS_MAX + 1)))
