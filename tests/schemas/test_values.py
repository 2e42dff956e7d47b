"""Single values: what a person would read without doubt is read, the rest is a ValueError, nothing else."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.values import INT_MAX, INT_MIN, is_null, read_decimal, read_int, read_time

quick = settings(max_examples=examples(200), deadline=None)


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


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_PARTS = [
    " ", " ", "2024-02-01", "06:28:15", "T", "Z", "UTC", "+0000", "0000", "00:00", "-03", "m=", "+0.1", "Thu", ",",
    "Feb", "01", "2024", "24", "9999-12-31T23:59:59-14:00", "0001", "1706768895", ".", "²", "\u0661",
    "(", ")", "[", "]", "GMT", "\u017f",
]  # fmt: skip
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
        ("2024-02-01 06:28:15  0000 UTC", AT),  # a plus that a form made a blank
        ("2024-02-01 06:28:15.123456789  0000 UTC", MICRO),
        ("2024-02-01 06:28  0000 UTC", AT.replace(second=0)),
        ("2024-02-01 06:28:15  0000", AT),
        ("2024-02-01 11:58:15  0530 IST", AT),
        ("2024-02-01 06:28:15 00:00", AT),
        ("2024-02-01T06:28:15 00:00", AT),
        ("2024-02-01T11:58:15.123456 05:30", MICRO),
        ("20240201T062815 0000", AT),
        ("20240201 062815 +0000 UTC", AT),
        ("2024-02-01 06:28:15 +0000 UTC m=+0.01", AT),
        ("2024-02-01 06:28:15.123456789 +0000 UTC m=+864000.123456789", MICRO),
        ("2024-02-01 06:28:15  0000 UTC m= 0.000012345", AT),
        ("2024-02-01 01:28:15 -0500 EST m=-0.1", AT),
        ("2024-02-01 03:28:15 -0300 -03", AT),
        ("2024-02-01 12:13:15 +0545 +0545", AT),
        ("2024-02-01 09:28:15  0300  03", AT),
        ("2024-02-01 16:28:15 +1000 ChST", AT),
        ("Thu, 01 Feb 2024 06:28:15 GMT", AT),
        ("thu, 1 feb 2024 06:28:15 gmt", AT),
        ("Thu, 01 Feb 2024 11:58:15 +0530", AT),
        ("Thu, 01 Feb 2024 11:58:15  0530", AT),
        ("Thu, 01 Feb 2024 06:28:15 -0000", AT),
        ("01 Feb 2024 06:28:15 +0000 (UTC)", AT),
        ("01 Feb 2024 06:28:15", AT),
        ("1 Feb 2024 06:28 Z", AT.replace(second=0)),
        ("Thursday, 01-Feb-24 06:28:15 GMT", AT),
        ("Thu, 01-Feb-2024 06:28:15 GMT", AT),
        ("Thu Feb  1 06:28:15 2024", AT),
        ("Thu Feb  1 01:28:15 -0500 2024", AT),
        ("Thu Feb  1 06:28:15 UTC 2024", AT),
        ("Thu, 01 Feb 2024 06:28:15 UT", AT),
        ("Thu Feb 01 2024 06:28:15 GMT+0000 (Coordinated Universal Time)", AT),
        ("Thu Feb 01 2024 06:28:15 GMT 0000 (Coordinated Universal Time)", AT),
        ("Thu Feb 01 2024 07:28:15 GMT+0100 (Central European Standard Time)", AT),
        ("Thu Feb 01 2024 01:28:15 GMT-0500", AT),
        ("2024-02-01T06:28:15Z[UTC]", AT),
        ("2024-02-01T07:28:15+01:00[Europe/Berlin]", AT),
        ("2024-02-01T06:28Z[Etc/GMT+0]", AT.replace(second=0)),
        ("1706768895", AT),
        (" 1706768895.0 ", AT),
        ("1706768895.1234567", MICRO),
        ("1706768895123", AT.replace(microsecond=123000)),
        ("1706768895123.4567", MICRO),
        ("1706768895123456", MICRO),
        ("1706768895123456789", MICRO),
        ("1000000000", datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)),
        ("9999999999999", datetime(2286, 11, 20, 17, 46, 39, 999000, tzinfo=UTC)),
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
        "170676889",
        "17067688950",
        "-1706768895",
        "+1706768895",
        "1_706_768_895",
        "1706768895,5",
        "1706768895 UTC",
        "20240201062815",
        "01/02/2024",
        "02-01-2024 06:28:15",
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
        "2024-02-01 06:28:15 m=+0.01",
        "2024-02-01 06:28:15 +0000 UTC m=",
        "m=+0.01",
        "2024-02-01 06:28:15 1500",
        "2024-02-01 06:28:15 0075",
        "2024-02-01 06:28 15",
        "2024-02-01 06:28:15 PM",
        "2024-02-01T06:28:15Z 0000",
        "2024-02-01T06 00:00",
        "2024-02-01T 06:28",
        "2024-02-01 06:28:15 -0300 -04",
        "Fri, 01 Feb 2024 06:28:15 GMT",
        "Thu, 31 Feb 2024 06:28:15 GMT",
        "Thu, 01 Feb 2024 06:28:15 IST",
        "Thu, 01 Feb 2024 25:28:15 GMT",
        "Thurs, 01 Feb 2024 06:28:15 GMT",
        "Thu, 01 Feb 2024",
        "01 Feb 24 06:28:15 GMT",
        "01-Feb-24 06:28:15 GMT",
        "Friday, 01-Feb-24 06:28:15 GMT",
        "01-Feb 2024 06:28:15 GMT",
        "01 Ḟeb 2024 06:28:15 GMT",
        "Feb 1 06:28:15 2024",
        "Fri Feb 01 2024 06:28:15 GMT+0000",
        "Thu Feb 01 2024 06:28:15 GMT",
        "Thu Feb 01 2024 06:28:15 GMT+00:00",
        "Thu Feb 01 2024 06:28:15 EST-0500",
        "2024-02-01T06:28:15[Europe/Berlin]",
        "2024-02-01 06:28[Europe/Berlin]",
        "2024-02-01T06:28:15Z[]",
        "2024-02-01[UTC]",
        "Thu Feb 1 06:28:15",
        "+0000 UTC",
        " +0000 UTC",
        "9" * 200,
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


GO = "%Y-%m-%d %H:%M:%S.%f %z "
TO_THE_MICROSECOND: list[Callable[[datetime], str]] = [
    datetime.isoformat,
    lambda at: at.strftime(GO + "XYZ"),
    lambda at: at.strftime(GO + "%z"),
    lambda at: at.strftime(GO + "XYZ m=+12.000345678"),
    lambda at: f"{(at - EPOCH) // timedelta(microseconds=1)}",
    lambda at: f"{(at - EPOCH) // timedelta(microseconds=1)}000",
    lambda at: f"{(at - EPOCH) // timedelta(seconds=1)}.{at.microsecond:06}",
    lambda at: f"{(at - EPOCH) // timedelta(milliseconds=1)}.{at.microsecond % 1000:03}",
]
TO_THE_SECOND: list[Callable[[datetime], str]] = [
    format_datetime,
    lambda at: format_datetime(at).partition(", ")[2],
    lambda at: format_datetime(at.astimezone(UTC), usegmt=True),
    lambda at: at.strftime("%A, %d-%b-%Y %H:%M:%S %z"),
    lambda at: at.astimezone(UTC).ctime(),
    lambda at: at.strftime("%a %b %e %H:%M:%S %z %Y"),
    lambda at: at.strftime("%a %b %d %Y %H:%M:%S GMT%z (Somewhere Standard Time)"),
    lambda at: str(int(at.timestamp() // 1)),
]


@quick
@given(
    st.datetimes(
        datetime(2001, 9, 10),  # noqa: DTZ001 - as above
        datetime(2286, 11, 19),  # noqa: DTZ001
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ),
    st.sampled_from([*TO_THE_MICROSECOND, *TO_THE_SECOND]),
)
def test_every_time_as_others_write_it_and_as_a_form_leaves_it(moment, write):
    utc = moment.astimezone(UTC)
    if write in TO_THE_SECOND:
        utc = utc.replace(microsecond=0)
    text = write(moment)
    for candidate in (text, text.replace("+", " "), text.upper(), f" {text} "):
        assert read_time(candidate) == utc, candidate


@quick
@given(
    st.one_of(
        st.text(),
        st.text("0123456789-:+.TZ UTC", max_size=40),
        st.lists(st.sampled_from(TIME_PARTS), max_size=8).map("".join),
    ),
    st.sampled_from([read_int, read_decimal, read_time]),
)
def test_only_value_error_comes_out(text: str, reader: Callable[[str], Any]):
    for candidate in (text, f"{text} +0000 UTC"):
        with suppress(ValueError):
            reader(candidate)
