"""Single values: what a person would read without doubt is read, the rest is a ValueError, nothing else."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.values import INT_MAX, INT_MIN, is_null, read_decimal, read_int, read_time

quick = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize(
    "text", ["", " ", "\t\n", "\u00a0", "null", "NULL", "Null", "None", "none", "NONE", " nUlL "]
)
def test_null(text):
    assert is_null(text)


@pytest.mark.parametrize(
    "text", ["0", "nil", "nulls", "no", "n/a", "undefined", "null null", "false", '""', "\x00"]
)
def test_not_null(text):
    assert not is_null(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("60", 60),
        (" 60 ", 60),
        ("60.0", 60),
        ("60.", 60),
        ("60.000", 60),
        ("+60", 60),
        ("-1", -1),
        ("007", 7),
        ("-0", 0),
    ],
)
def test_int(text, value):
    assert read_int(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "60.5",
        "6e1",
        "1_000",
        "1,000",
        "١٢",
        "²",
        "0x10",
        "6 0",
        "60s",
        "--1",
        "+",
        ".0",
        "nan",
        str(INT_MAX + 1),
        str(INT_MIN - 1),
        "0" * 65,
        "9" * 5000,
    ],
)
def test_not_int(text):
    with pytest.raises(ValueError, match=r".+"):
        read_int(text)


@quick
@given(st.integers(INT_MIN, INT_MAX))
def test_every_int_of_64_bits(value):
    assert read_int(str(value)) == read_int(f" {value}.0") == value


@pytest.mark.parametrize("text", ["0.00350", "12", "-0.5", "+3.", ".5", " 1.10 ", "1E-7", "1e+3"])
def test_decimal(text):
    assert str(read_decimal(text)) == str(Decimal(text.strip()))


@pytest.mark.parametrize(
    "text",
    ["", "NaN", "sNaN", "Infinity", "-inf", "1,5", "$1", "1_0", "\u0661", "1e9999", ".", "1" * 65, "0x1"],
)
def test_not_decimal(text):
    with pytest.raises(ValueError, match=r".+"):
        read_decimal(text)


@quick
@given(st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**9), max_value=10**9))
def test_every_amount(value):
    assert str(read_decimal(str(value))) == str(value)


AT = datetime(2024, 2, 1, 6, 28, 15, tzinfo=UTC)
MICRO = AT.replace(microsecond=123456)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-02-01 06:28:15 +0000 UTC", AT),
        (" 2024-02-01 06:28:15 +0000 UTC ", AT),
        ("2024-02-01  06:28:15  +0000  UTC", AT),
        ("2024-02-01 06:28:15.123456 +0000 UTC", MICRO),
        ("2024-02-01 06:28:15.123456789 +0000 UTC", MICRO),
        ("2024-02-01 11:58:15 +0530 IST", AT),
        ("2024-02-01 06:28:15 +0000", AT),
        ("2024-02-01 06:28:15 +00:00", AT),
        ("2024-02-01 06:28:15 UTC", AT),
        ("2024-02-01 06:28:15 GMT", AT),
        ("2024-02-01 06:28:15 Z", AT),
        ("2024-02-01T06:28:15Z", AT),
        ("2024-02-01t06:28:15z", AT),
        ("2024-02-01T06:28:15", AT),
        ("2024-02-01T06:28:15.123456Z", MICRO),
        ("2024-02-01T06:28:15.123Z", AT.replace(microsecond=123000)),
        ("2024-02-01T06:28:15+00:00", AT),
        ("2024-02-01T11:58:15+05:30", AT),
        ("2024-02-01T11:58:15+0530", AT),
        ("2024-01-31T22:28:15-08:00", AT),
        ("2024-02-01 06:28:15", AT),
        ("2024-02-01 06:28:15Z", AT),
        ("2024-02-01 06:28:15.123456", MICRO),
        ("2024-02-01 06:28", AT.replace(second=0)),
        ("2024-02-01 06:28 +0000 UTC", AT.replace(second=0)),
        ("20240201T062815Z", AT),
        ("2024-02-01", AT.replace(hour=0, minute=0, second=0)),
    ],
)
def test_time(text, value):
    read = read_time(text)
    assert read == value
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "now",
        "1706768895",
        "1706768895000",
        "01/02/2024",
        "2024-02-30 00:00:00",
        "2024-02-01 25:00:00",
        "2024-02-01 +0530",
        "2024-02-01+05:30",
        "2024-02-01 +0000 UTC",
        "2024-02-01 UTC",
        "2024-02-01 06:28:15 IST",
        "2024-02-01T06:28:15+05:00 +0000 UTC",
        "2024-02-01x06:28:15",
        "0001-01-01T00:00:00+14:00",
        "2024-02-01 06:28:15 +0000 UTC m=+0.01",
        "+0000 UTC",
        " +0000 UTC",
        "9" * 100,
        "\x00",
        "2024-02-01 06:28:15 \x00",
    ],
)
def test_not_time(text):
    with pytest.raises(ValueError, match=r".*"):
        read_time(text)


@quick
@given(
    st.datetimes(
        datetime(1971, 1, 1),  # noqa: DTZ001 - hypothesis wants its bounds naive and adds the zone
        datetime(9000, 1, 1),  # noqa: DTZ001
        timezones=st.builds(
            timezone, st.integers(-14 * 60, 14 * 60).map(lambda minutes: timedelta(minutes=minutes))
        ),
    )
)
def test_every_time_in_every_format(moment):
    utc = moment.astimezone(UTC)
    assert read_time(moment.isoformat()) == utc
    assert read_time(moment.strftime("%Y-%m-%d %H:%M:%S.%f %z XYZ")) == utc
    assert read_time(utc.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")) == utc
    assert read_time(utc.strftime("%Y-%m-%d %H:%M:%S.%f")) == utc
    assert read_time(utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ")) == utc


@quick
@given(
    st.one_of(st.text(), st.text("0123456789-:+.TZ UTC", max_size=40)),
    st.sampled_from([read_int, read_decimal, read_time]),
)
def test_only_value_error_comes_out(text: str, reader: Callable[[str], Any]):
    for candidate in (text, f"{text} +0000 UTC"):
        with suppress(ValueError):
            reader(candidate)
