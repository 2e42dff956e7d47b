import msgspec
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.handler_control import (
    HandlerReport,
    Pause,
    decode_reports,
    encode_pause,
    encode_reports,
    pause_field,
    read_control,
)

# Surrogates too: a name may be any text of Python's.
NAMES = st.text(st.characters(), min_size=1, max_size=20)
TIMES = st.integers(0, 2**53)


@given(st.dictionaries(NAMES, st.builds(Pause, since_ms=TIMES, why=st.text(), by=st.text())), TIMES)
def test_pauses_are_read_as_they_were_written(pauses, revision) -> None:
    fields = {pause_field(name): encode_pause(pause) for name, pause in pauses.items()}
    assert all(" " not in field.removeprefix("paused ") for field in fields)
    control = read_control({"revision": str(revision).encode(), "another": b"thing", **fields})
    assert control == (revision, pauses)


def test_nothing_is_paused_where_nothing_is_written() -> None:
    assert read_control({}) == (0, {})
    assert read_control({"revision": b"9" * 5_000, "paused %ff": b""}) == (0, {})
    assert read_control({"revision": b"of a later release"}) == (0, {})


@given(st.binary(max_size=30))
def test_record_that_cannot_be_read_pauses(value) -> None:
    assert read_control({pause_field("bill"): value}).paused.keys() == {"bill"}


@given(st.dictionaries(NAMES, st.builds(HandlerReport, TIMES, TIMES, st.booleans())))
def test_reports_are_read_as_they_were_written(reports) -> None:
    assert decode_reports(encode_reports(reports)) == reports


@given(st.binary(max_size=60))
def test_reports_that_cannot_be_read_are_none(value) -> None:
    assert isinstance(decode_reports(value), dict)
    assert decode_reports(b"\xc1" + value) == {}
    assert decode_reports(msgspec.msgpack.encode({"%ff": (1, 2, True)})) == {}
