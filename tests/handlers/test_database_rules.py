"""The pure parts of `handlers.database`: batches, verdicts, days, rows, rights, hosts."""

import json
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from database_kit import NUMBER, OTHER_NUMBER, context_of, hangup
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.events import SessionRecordingCompleted, UnknownEvent
from maskline.handlers.database import partitions, verdicts
from maskline.handlers.database.batcher import Batcher, BatchLimits
from maskline.handlers.database.connection import error_text, urls_by_host
from maskline.handlers.database.migrator import Rights, missing_right
from maskline.handlers.database.rows import DAY, EVENT_COLUMNS, RowBuilder, with_substitutes
from maskline.handlers.database.verdicts import Verdict, verdict_of
from maskline.schemas.privacy import number_token

TODAY = date(2026, 11, 30)


@given(st.lists(st.integers(1, 50)), st.integers(1, 5), st.integers(1, 100))
def test_batches_have_every_row_once_in_order_and_keep_to_their_limits(sizes, rows_max, max_bytes):
    batcher = Batcher[int](BatchLimits(rows_max, max_bytes))
    for index, size in enumerate(sizes):
        batcher.add(index, size)
    taken = []
    while batch := batcher.take():
        assert len(batch) <= rows_max
        assert len(batch) == 1 or sum(sizes[index] for index in batch) <= max_bytes
        after = batch[-1] + 1
        if after < len(sizes) and len(batch) < rows_max:  # no smaller than it must be
            assert sum(sizes[index] for index in (*batch, after)) > max_bytes
        taken += batch
    assert taken == [*range(len(sizes))]
    assert len(batcher) == 0


@pytest.mark.parametrize(
    ("sqlstate", "verdict"),
    [
        ("22021", Verdict.ROW), ("22P05", Verdict.ROW), ("21000", Verdict.ROW), ("23505", Verdict.ROW),
        ("54000", Verdict.ROW), ("28P01", Verdict.SETUP), ("42501", Verdict.SETUP), ("3D000", Verdict.SETUP),
        ("40P01", Verdict.AWAY), ("40001", Verdict.AWAY), ("57P01", Verdict.AWAY), ("25006", Verdict.AWAY),
        ("53100", Verdict.AWAY), ("53300", Verdict.AWAY), ("57014", Verdict.AWAY), ("55P03", Verdict.AWAY),
        ("08006", Verdict.AWAY), (None, Verdict.AWAY),
    ],
)  # fmt: skip
def test_an_error_is_the_rows_the_operators_or_passes(sqlstate, verdict):
    assert verdict_of(sqlstate) is verdict


def test_a_missing_partition_is_told_from_other_constraints():
    assert verdict_of("23514", 'no partition of relation "events" found for row') is Verdict.PARTITION
    assert verdict_of("23514", 'new row violates check constraint "mine"') is Verdict.ROW


def test_the_table_of_verdicts_names_every_class_that_the_code_does():
    for one in (*verdicts.ROW_CLASSES, *verdicts.SETUP_CLASSES):
        assert f"{one}…" in verdicts.__doc__


def test_errors_repeat_no_values_of_rows():
    secret = f"invalid input for query argument $1: [('{NUMBER}',)]"
    assert error_text(asyncpg.DataError(secret)) == "Data (SQLSTATE 22000)"
    assert NUMBER[1:] not in error_text(asyncpg.AdminShutdownError(f"terminating {NUMBER}"))
    assert error_text(TimeoutError()) == "no answer in time"


@given(st.sets(st.dates(date(2020, 1, 1), date(2030, 1, 1))), st.integers(0, 4000))
def test_a_day_is_dropped_once_its_last_moment_is_old_enough_and_not_before(days, retention_days):
    dropped = partitions.days_to_drop(days, TODAY, retention_days)
    if not retention_days:
        assert dropped == []
        return
    first_kept = datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC) - timedelta(days=retention_days)
    for day in days:
        ends = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        assert (day in dropped) == (ends <= first_kept)
    assert dropped == sorted(dropped)


def test_days_have_tables_of_their_own_and_other_tables_are_no_days():
    assert partitions.day_of(partitions.partition_name(TODAY)) == TODAY
    for name in ("events_20261399", "events_2026113", "events", "events_20261130_old", "my_events_20261130"):
        assert partitions.day_of(name) is None
    assert partitions.days_ahead(TODAY)[0] == TODAY
    assert all(partitions.is_possible(day, TODAY) for day in partitions.days_ahead(TODAY))
    for day in (date(1970, 1, 1), TODAY + timedelta(days=partitions.AHEAD_DAYS + 1)):
        assert not partitions.is_possible(day, TODAY)


def column(row, name):
    return row[EVENT_COLUMNS.index(name)]


def test_a_row_has_tokens_for_numbers_wherever_they_stand():
    event = hangup(
        first_party=NUMBER,
        extra={
            "Caller": f"tel {NUMBER}",
            "From": ["anonymous", OTHER_NUMBER],
            "Mood": "good",
            "Local": "07700/900_123",
        },
        problems=("Duration",),
    )
    row, size_bytes = RowBuilder(plain_numbers=False).event_row(event, context_of(event))
    assert column(row, "from_number") == column(row, "first_party") == number_token(NUMBER)
    assert column(row, "second_party") is None
    extra = json.loads(column(row, "extra"))
    assert extra == {
        "Caller": f"tel {number_token(NUMBER)}",
        "From": [number_token("anonymous"), number_token(OTHER_NUMBER)],
        "Mood": "good",
        "Local": number_token(OTHER_NUMBER),
    }
    assert NUMBER[1:] not in repr(row)
    assert OTHER_NUMBER[1:] not in repr(row)
    assert size_bytes > sum(len(value) for value in row if isinstance(value, str))


@pytest.mark.parametrize("plain", [False, True])
def test_texts_of_an_event_hide_its_numbers_and_a_link_keeps_its_other_digits(plain):
    event = UnknownEvent(
        session_uuid="s",
        event_name=f"Session {OTHER_NUMBER}",
        from_number=NUMBER,
        plivo_hangup_cause=f"Busy {OTHER_NUMBER}",
        recording_url=f"https://media.example/14155550199/{NUMBER[1:]}.mp3",
    )
    row, _ = RowBuilder(plain_numbers=plain).event_row(event, context_of(event))
    for name, text in (
        ("event_name", event.event_name),
        ("plivo_hangup_cause", event.plivo_hangup_cause),
        ("recording_url", event.recording_url),
    ):
        assert (column(row, name) == text) == plain, name
    assert column(row, "recording_url").startswith("https://media.example/14155550199/")
    assert plain or not any(number[1:] in repr(row) for number in (NUMBER, OTHER_NUMBER))


def test_a_row_has_the_numbers_if_the_operator_says_so():
    event = hangup(extra={"Caller": NUMBER})
    row, _ = RowBuilder(plain_numbers=True).event_row(event, context_of(event))
    assert column(row, "from_number") == NUMBER
    assert json.loads(column(row, "extra")) == {"Caller": NUMBER}


def test_a_row_has_every_attribute_and_the_order_it_came_in():
    event = SessionRecordingCompleted(
        session_uuid="s", sequence_number=7, recording_uuid="r", recording_duration=12, recording_format=".mp3",
        recording_start_time=datetime(2026, 1, 2, tzinfo=UTC), problems=("Duration",), extra={"Duration": "x"},
    )  # fmt: skip
    received_at = datetime(2026, 11, 29, 23, 59, 59, 999000, tzinfo=UTC)
    ctx = context_of(
        event, order="after_gap", missing=(5, 6), token=9, replayed=True, received_at=received_at
    )
    row, _ = RowBuilder(plain_numbers=False).event_row(event, ctx)
    named = dict(zip(EVENT_COLUMNS, row, strict=True))
    assert named["day"] == row[DAY] == date(2026, 11, 29)
    assert {name: named[name] for name in ("recording_uuid", "recording_duration", "recording_format")} == {
        "recording_uuid": "r", "recording_duration": 12, "recording_format": ".mp3",
    }  # fmt: skip
    assert named["recording_start_time"] == datetime(2026, 1, 2, tzinfo=UTC)
    assert (named["sequence_order"], named["missing"], named["fencing_token"]) == ("after_gap", (5, 6), 9)
    assert (named["replayed"], named["received_at"], named["problems"]) == (True, received_at, ("Duration",))
    assert named["idempotency_key"] == ctx.idempotency_key


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=[]), max_size=20), st.text(max_size=5))
def test_substitutes_change_only_what_text_cannot_hold_and_say_where(text, name):
    event = hangup(plivo_hangup_cause=text, extra={name: text, "list": [text]})
    row = RowBuilder(plain_numbers=True).event_row(event, context_of(event))[0]
    mended = with_substitutes(EVENT_COLUMNS, row)
    holdable = "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)
    if holdable and "\0" not in name:
        assert mended is row
        return
    changed = {"extra"} if holdable else {"extra", "plivo_hangup_cause"}
    assert set(column(mended, "substituted")) == changed
    for place, column_name in enumerate(EVENT_COLUMNS[:-1]):
        assert (mended[place] == row[place]) == (column_name not in changed)
    assert len(column(mended, "plivo_hangup_cause")) == len(text)
    column(mended, "plivo_hangup_cause").encode()
    assert "\0" not in column(mended, "plivo_hangup_cause")
    assert "\\u0000" not in column(mended, "extra").replace("\\\\", "")


def test_hosts_are_tried_one_by_one_with_the_same_login_and_options():
    assert urls_by_host("postgresql://u:p%40@h1:1,h2,[::1]:3/db?sslmode=require") == [
        "postgresql://u:p%40@h1:1/db?sslmode=require",
        "postgresql://u:p%40@h2/db?sslmode=require",
        "postgresql://u:p%40@[::1]:3/db?sslmode=require",
    ]
    for one in ("postgresql://h/db", "postgresql:///db?host=/run/postgresql"):
        assert urls_by_host(one) == [one]


def test_the_right_that_is_missing_is_named_with_what_gives_it():
    whole = Rights("writer", "rides", True, True, True, "owner", True)
    assert missing_right(whole, "maskline") is None
    assert missing_right(whole._replace(has_schema=False, may_create_tables=False, owner=None), "s") is None
    for lack, remedy in (
        ({"has_schema": False, "may_create_schema": False}, "CREATE SCHEMA maskline AUTHORIZATION writer"),
        ({"may_create_tables": False}, "GRANT USAGE, CREATE ON SCHEMA maskline TO writer"),
        ({"owns_tables": False}, "GRANT owner TO writer"),
    ):
        line = missing_right(whole._replace(**lack), "maskline")
        assert line is not None
        assert remedy in line
        assert "\n" not in line


def test_a_batch_begins_at_once_alone_and_beside_another_only_with_many_rows():
    batcher = Batcher[int](BatchLimits(rows_max=10, max_bytes=1_000, beside_rows_min=3))
    assert not batcher.may_begin(under_way=0)
    batcher.add(1, 1)
    assert batcher.may_begin(under_way=0)
    batcher.add(2, 1)
    assert not batcher.may_begin(under_way=1)
    batcher.add(3, 1)
    assert batcher.may_begin(under_way=1)
