"""The views of `handlers.postgres`, on data whose answers are known."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from database_kit import context_of, hangup, store_of

from maskline.events import CallSummary, SessionPinAuthenticationStatus

FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


async def rows_of(sql, view: str, order: str = "day"):
    return [tuple(row) for row in await sql.fetch(f"SELECT * FROM {view} ORDER BY {order}")]  # noqa: S608  ours


@pytest.fixture
async def calls(shared_postgres, database, sql):
    """Three calls of the first day, of which the last is replaced by a later revision, and one of the second."""
    async with store_of(shared_postgres, database) as store:
        for session, revision, day, answered, amount, billed, cause in (
            ("a", 1, FIRST, True, "0.0170", 60, "Normal Hangup"),
            ("b", 1, FIRST, False, None, None, "Busy Line"),
            ("c", 1, FIRST, False, None, None, None),
            ("c", 2, FIRST, True, "0.0030", 12, "Normal Hangup"),
            ("d", 1, SECOND, True, "1", 1, "Normal Hangup"),
        ):
            summary = CallSummary(
                session_uuid=session, call=1, revision=revision, ended_by="both_legs", complete=True,
                started_at=noon(day) + timedelta(hours=11, minutes=59), answered=answered,
                amount=None if amount is None else Decimal(amount), billed_duration_s=billed,
                hangup_cause=cause, hangup_cause_code=None if cause is None else 4000,
            )  # fmt: skip
            await store.add_summary(summary, context_of(summary))


async def test_answer_rate(calls, sql):
    assert await rows_of(sql, "answer_rate") == [
        (FIRST, 3, 2, Decimal("0.6667")),
        (SECOND, 1, 1, Decimal("1.0000")),
    ]


async def test_cost_per_day(calls, sql):
    assert await rows_of(sql, "cost_per_day") == [
        (FIRST, 3, Decimal("0.0200"), 72, 1),
        (SECOND, 1, Decimal(1), 1, 0),
    ]


async def test_hangup_causes(calls, sql):
    assert await rows_of(sql, "hangup_causes", "day, hangup_cause") == [
        (FIRST, "Busy Line", 4000, 1, 0),
        (FIRST, "Normal Hangup", 4000, 2, 2),
        (SECOND, "Normal Hangup", 4000, 1, 1),
    ]


async def test_pin_failures(shared_postgres, database, sql):
    async with store_of(shared_postgres, database) as store:
        for session, day, status in (
            ("a", FIRST, "failed"), ("a", FIRST, "Failed"), ("a", FIRST, "success"), ("b", FIRST, "AuthorizedCaller"),
            ("c", SECOND, "success"),
        ):  # fmt: skip
            event = SessionPinAuthenticationStatus(session_uuid=session, pin_authentication_status=status)
            ctx = context_of(event, received_at=noon(day), fingerprint=f"{status:8}".encode())
            await store.add_event(event, ctx)
    assert await rows_of(sql, "pin_failures") == [(FIRST, 2, 1, 2), (SECOND, 0, 0, 1)]


async def test_gaps(shared_postgres, database, sql):
    async with store_of(shared_postgres, database) as store:
        for session, number, order, missing in (
            ("a", 1, "in_order", ()),
            ("a", 4, "after_gap", (2, 3)),
            ("a", 3, "late", ()),
            ("b", 2, "in_order", ()),
        ):
            event = hangup(session_uuid=session, sequence_number=number)
            await store.add_event(
                event, context_of(event, received_at=noon(FIRST), order=order, missing=missing)
            )
    assert await rows_of(sql, "gaps", "missing_number") == [
        (FIRST, "a", 0, 2, 4, noon(FIRST), False),
        (FIRST, "a", 0, 3, 4, noon(FIRST), True),
    ]
