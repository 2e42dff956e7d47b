"""The store of `handlers.postgres` on a real PostgreSQL: rows, bad rows, partitions, fencing."""

import asyncio
import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest
from database_kit import NUMBER, context_of, hangup, store_of

from maskline import Reject
from maskline.events import CallSummary, Leg, RecordingSummary, UnknownEvent
from maskline.handlers.database.connection import connect
from maskline.handlers.database.partitions import create_days, drop_old, existing_days, partition_name
from maskline.handlers.database.rows import EVENT_COLUMNS, SUMMARY_COLUMNS
from maskline.schemas.privacy import number_token


async def stored(store, *events, **facts):
    """Store events together; what each came to."""
    futures = [store.add_event(event, context_of(event, **facts)) for event in events]
    return await asyncio.gather(*futures, return_exceptions=True)


async def test_the_types_that_are_sent_have_the_columns_of_the_rows(shared_postgres, database, sql):
    async with store_of(shared_postgres, database):
        for name, columns in (("event_row", EVENT_COLUMNS), ("call_summary_row", SUMMARY_COLUMNS)):
            found = await sql.fetch(
                "SELECT attname FROM pg_attribute JOIN pg_type ON typrelid = attrelid WHERE typname = $1 "
                "ORDER BY attnum",
                name,
            )
            assert tuple(row[0] for row in found) == columns


async def test_an_event_is_stored_with_what_it_says(shared_postgres, database, sql):
    event = hangup(
        amount=Decimal("0.01700"),
        event_timestamp=datetime(2026, 11, 30, 8, tzinfo=UTC),
        plivo_hangup_cause="Normal Hangup",
        extra={"Mood": "good", "Twice": ["a", "b"]},
        problems=("Duration",),
    )
    async with store_of(shared_postgres, database) as store:
        assert await stored(store, event, order="after_gap", missing=(2, 3), token=5) == [None]
    row = dict(await sql.fetchrow("SELECT * FROM events"))
    assert row["amount"] == Decimal("0.01700")
    assert row["event_timestamp"] == event.event_timestamp
    assert (row["missing"], row["skipped"], row["problems"]) == ([2, 3], None, ["Duration"])
    assert (row["sequence_order"], row["fencing_token"]) == ("after_gap", 5)
    assert json.loads(row["extra"]) == {"Mood": "good", "Twice": ["a", "b"]}
    assert row["from_number"] == number_token(NUMBER)
    assert row["day"] == row["received_at"].date()
    assert datetime.now(UTC) - row["stored_at"] < timedelta(minutes=5)


async def test_one_row_that_postgres_refuses_is_found_and_the_other_999_are_stored(
    shared_postgres, database, sql
):
    events = [hangup() for _ in range(1_000)]
    # An index row has 8,191 bytes at most.
    events[617] = hangup(session_uuid=random.Random(1).randbytes(10_000).hex())
    async with store_of(shared_postgres, database) as store:
        outcomes = await stored(store, *events)
    refused = [index for index, outcome in enumerate(outcomes) if outcome is not None]
    assert refused == [617]
    assert isinstance(outcomes[617], Reject)
    assert "54000" in str(outcomes[617])
    assert await sql.fetchval("SELECT count(*) FROM events") == 999


async def test_what_text_cannot_hold_is_stored_with_signs_in_its_place(shared_postgres, database, sql):
    odd = [
        hangup(plivo_hangup_cause="a\0b"),
        hangup(virtual_number="\ud800"),
        hangup(extra={"N\0": "\0", "S": ["\udfff"], "kept": "\\u0000"}),
        UnknownEvent(session_uuid="nul\0nul", event_name="New\0", extra={}),
    ]
    events = [one for pair in zip(odd, [hangup() for _ in odd], strict=True) for one in pair]
    async with store_of(shared_postgres, database) as store:
        assert await stored(store, *events) == [None] * len(events)
    rows = await sql.fetch("SELECT * FROM events WHERE substituted IS NOT NULL ORDER BY substituted[1]")
    assert [row["substituted"] for row in rows] == [
        ["extra"],
        ["plivo_hangup_cause"],
        ["session_uuid", "idempotency_key", "event_name"],
        ["virtual_number"],
    ]
    assert json.loads(rows[0]["extra"]) == {"N\u2400": "\u2400", "S": ["\ufffd"], "kept": "\\u0000"}
    assert rows[1]["plivo_hangup_cause"] == "a\u2400b"
    assert rows[3]["virtual_number"] == "\ufffd"
    assert await sql.fetchval("SELECT count(*) FROM events") == len(events)


@pytest.mark.parametrize("amount", ["1e999", "-1E-999", "0." + "1" * 60])
async def test_extreme_values_are_stored_as_they_are(shared_postgres, database, sql, amount):
    event = hangup(
        amount=Decimal(amount),
        billed_duration=2**63 - 1,
        duration=-(2**63),
        event_timestamp=datetime(1, 1, 2, tzinfo=UTC),
        extra={"Large": "x" * 60_000},
    )
    async with store_of(shared_postgres, database) as store:
        assert await stored(store, event) == [None]
    row = await sql.fetchrow("SELECT * FROM events")
    assert row["amount"] == Decimal(amount)
    assert (row["billed_duration"], row["duration"]) == (2**63 - 1, -(2**63))
    assert row["event_timestamp"] == datetime(1, 1, 2, tzinfo=UTC)


async def test_an_event_that_comes_again_has_one_row_and_the_newer_owner_has_the_say(
    shared_postgres, database, sql
):
    event = hangup()
    now = datetime.now(UTC)
    async with store_of(shared_postgres, database) as store:
        for token, order, replayed, expected in (
            (5, "in_order", False, (5, "in_order", False)),
            (5, "late", False, (5, "in_order", False)),  # the same owner again
            (4, "late", False, (5, "in_order", False)),  # an older one
            (4, "late", True, (5, "in_order", False)),  # that replays
            (6, "after_gap", False, (6, "after_gap", False)),  # a newer one
            (6, "in_order", True, (6, "in_order", True)),  # a replay
        ):
            assert await stored(
                store, event, token=token, order=order, replayed=replayed, received_at=now
            ) == [None]
            row = await sql.fetchrow("SELECT fencing_token, sequence_order, replayed FROM events")
            assert tuple(row) == expected
        assert await sql.fetchval("SELECT count(*) FROM events") == 1


async def test_one_key_twice_in_a_batch_is_one_row(shared_postgres, database, sql):
    event = hangup()
    now = datetime.now(UTC)
    async with store_of(shared_postgres, database) as store:
        assert (
            await stored(store, event, *[hangup() for _ in range(20)], event, received_at=now) == [None] * 22
        )
    assert await sql.fetchval("SELECT count(*) FROM events") == 21


def summary_of(session: str, revision: int, **facts) -> CallSummary:
    return CallSummary(
        session_uuid=session, call=1, revision=revision, ended_by="both_legs", complete=True,
        first_party_number=NUMBER, **facts,
    )  # fmt: skip


async def test_the_greatest_revision_of_a_call_is_kept(shared_postgres, database, sql):
    leg = Leg(
        answered_at=datetime(2026, 1, 2, tzinfo=UTC), outcome="answered", talk_s=30, hangup_cause="a\0b"
    )
    async with store_of(shared_postgres, database) as store:
        for revision, token, amount, expected in (
            (2, 1, "0.02", "0.02"),
            (1, 9, "0.01", "0.02"),
            (2, 1, "0.09", "0.02"),
            (3, 1, "0.03", "0.03"),
        ):
            summary = summary_of(
                "s", revision, amount=Decimal(amount), second_party=leg, missing=(3,),
                recordings=(RecordingSummary(recording_uuid="r", status="completed"),),
            )  # fmt: skip
            await store.add_summary(summary, context_of(summary, token=token))
            assert await sql.fetchval("SELECT amount FROM call_summaries") == Decimal(expected)
    row = await sql.fetchrow("SELECT * FROM call_summaries")
    assert (row["call_key"], row["first_party_number"]) == ("s:call:1", number_token(NUMBER))
    assert (row["second_party_outcome"], row["second_party_talk_s"], row["missing"]) == ("answered", 30, [3])
    assert row["second_party_hangup_cause"] == "a\u2400b"
    assert json.loads(row["recordings"])[0]["status"] == "completed"


async def test_a_replay_of_old_events_makes_the_partitions_it_needs(shared_postgres, database, sql):
    async with store_of(shared_postgres, database) as store:
        for day in (date(2025, 12, 31), date(2026, 1, 1)):
            moment = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
            assert await stored(store, *[hangup() for _ in range(3)], received_at=moment) == [None] * 3
            assert (
                await sql.fetchval(
                    "SELECT count(*) FROM events WHERE tableoid = $1::regclass", partition_name(day)
                )
                == 3
            )
        (refused,) = await stored(store, hangup(), received_at=datetime(1970, 1, 1, tzinfo=UTC))
        assert isinstance(refused, Reject)


async def test_a_partition_that_is_dropped_under_the_worker_is_made_again(shared_postgres, database, sql):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with store_of(shared_postgres, database) as store:
        await stored(store, hangup(), received_at=moment)
        await sql.execute(f"DROP TABLE {partition_name(moment.date())}")
        assert await stored(store, hangup(), received_at=moment) == [None]
    assert await sql.fetchval("SELECT count(*) FROM events") == 1


async def test_many_make_the_same_partitions_at_once_and_one_that_was_detached_keeps_its_rows(
    shared_postgres, database, sql
):
    days = [date(2026, 2, day) for day in range(1, 6)]
    async with store_of(shared_postgres, database) as store:
        connections = [await connect(shared_postgres.url(database)) for _ in range(4)]
        await asyncio.gather(*(create_days(one, "maskline", days) for one in connections))
        assert set(days) <= await existing_days(sql, "maskline")
        await stored(store, hangup(), received_at=datetime(2026, 2, 3, tzinfo=UTC))
        await sql.execute("ALTER TABLE events DETACH PARTITION events_20260203")
        await create_days(sql, "maskline", days)
        assert await sql.fetchval("SELECT count(*) FROM events") == 1
        for one in connections:
            await one.close()


async def test_partitions_that_are_made_stay_made_if_one_of_them_fails(shared_postgres, database, sql):
    days = [date(2026, 2, day) for day in range(1, 5)]
    async with store_of(shared_postgres, database) as store:
        await sql.execute(f"CREATE TABLE {partition_name(days[2])} (n int)")  # it cannot be attached
        with pytest.raises(asyncpg.PostgresError):
            await create_days(sql, "maskline", days)
        assert {*days[:2]} == await existing_days(sql, "maskline") & {*days}
        await sql.execute(f"DROP TABLE {partition_name(days[2])}")
        assert await stored(store, hangup(), received_at=datetime(2026, 2, 4, tzinfo=UTC)) == [None]


async def test_retention_drops_whole_days_and_old_calls_and_nothing_that_is_younger(
    shared_postgres, database, sql
):
    today = await sql.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    async with store_of(shared_postgres, database) as store:
        for age in (0, 1, 2, 3, 30):
            moment = noon - timedelta(days=age)
            await stored(store, hangup(), received_at=moment)
            summary = summary_of(f"{age} days", 1)
            await store.add_summary(summary, context_of(summary, received_at=moment))
        await sql.execute("CREATE TABLE events_20200101 (LIKE events)")  # somebody's own table
        others = [await connect(shared_postgres.url(database)) for _ in range(3)]
        assert await drop_old(sql, "maskline", 0) == []
        dropped = await asyncio.gather(*(drop_old(one, "maskline", 2) for one in others))
        for one in others:
            await one.close()
    assert sorted(day for days in dropped for day in days) == [
        today - timedelta(days=30),
        today - timedelta(days=3),
    ]
    assert await sql.fetchval("SELECT array_agg(DISTINCT day ORDER BY day) FROM events") == [
        today - timedelta(days=2), today - timedelta(days=1), today,
    ]  # fmt: skip
    assert await sql.fetchval("SELECT array_agg(session_uuid ORDER BY session_uuid) FROM call_summaries") == [
        "0 days", "1 days", "2 days",
    ]  # fmt: skip
    assert await sql.fetchval("SELECT to_regclass('events_20200101') IS NOT NULL")


async def test_a_handler_that_was_cancelled_writes_no_row_and_holds_up_nobody(shared_postgres, database, sql):
    async with store_of(shared_postgres, database) as store:
        cancelled, event = hangup(), hangup()
        future = store.add_event(cancelled, context_of(cancelled))
        future.cancel()
        assert await stored(store, event) == [None]
    assert await sql.fetchval("SELECT array_agg(session_uuid) FROM events") == [event.session_uuid]
