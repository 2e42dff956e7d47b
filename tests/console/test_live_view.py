import asyncio
import io
from collections import Counter
from datetime import UTC, datetime

import pytest
from rich.console import Console

from maskline.console import live_view
from maskline.console.arrivals import Arrivals
from maskline.console.demo import compare
from maskline.console.dev_handler import HandledEvent, listen
from maskline.console.live_view import Counts, LiveView, event_line, summary_line
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

NOW = datetime(2026, 1, 5, 9, 1, 2, 345_678, tzinfo=UTC)


def handled(**changes):
    return HandledEvent(
        "5f598579-1d3e", "1-0", "SessionParamUpdate", False, 3, 0, "in_order", (), NOW
    )._replace(**changes)


class Unnumbered:
    async def place(self, session_uuid, entry_id, *, timeout_s):
        return None


def test_event_line_has_order_arrival_missing_and_run():
    assert event_line(handled(), 5, NOW).plain.split() == [
        "09:01:02.345", "5f598579", "3", "SessionParamUpdate", "in", "order", "arrived", "#5",
    ]  # fmt: skip
    line = event_line(handled(order="after_gap", missing=(1, 2), run=1, recording=True), None, NOW).plain
    assert "rec    3" in line
    assert line.endswith("after gap    missing 1, 2  run 1")
    assert (
        "missing 1, 2, 3, 4, 5, 6, 7, 8 and 992 more"
        in event_line(handled(order="after_gap", missing=tuple(range(1, 1001))), None, NOW).plain
    )
    assert " -  Session" in event_line(handled(number=None, order="unsequenced"), 1, NOW).plain


def test_summary_line_leaves_out_zeros():
    line = summary_line(Counts(7, 5, 4, 1, 0, 0, 2, 0, 0)).plain
    assert (
        line == "-- 7 arrived · 5 handled (4 in order, 1 after a gap) · 2 duplicates dropped · 0 dead letters"
    )
    assert "2 waiting for a missing number" in summary_line(Counts(7, 5, 4, 1, 0, 0, 2, 2, 0)).plain


async def test_flood_of_events_is_cut_and_reported(monkeypatch):
    monkeypatch.setattr(live_view, "SHOWN_WAITING_MAX", 10)
    out = io.StringIO()
    shown = LiveView(Console(file=out), Unnumbered(), lambda: Counts(*[0] * 9))
    for number in range(25):
        shown.show(handled(number=number))
    task = asyncio.create_task(shown.run())
    await shown.written()
    task.cancel()
    written = out.getvalue().splitlines()
    assert len(written) == 11
    assert written[-1] == "-- 15 more were handled and are not shown"
    assert "\x1b" not in out.getvalue()


async def test_summary_is_written_only_after_changes(monkeypatch):
    monkeypatch.setattr(live_view, "SUMMARY_INTERVAL_S", 0.01)
    out = io.StringIO()
    asked = 0
    enough = asyncio.Event()

    def counts():
        nonlocal asked
        asked += 1
        if asked == 6:
            enough.set()
        return Counts(*[min(asked, 3) - 1] * 9)

    task = asyncio.create_task(LiveView(Console(file=out), Unnumbered(), counts).run())
    await enough.wait()
    task.cancel()
    # Nothing at first, then 1, then 2, which stays.
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1", "2"]


async def test_arrivals_are_numbered_by_session(redis_server, namespace):
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=2)
    keys = Keys(namespace)

    def add(session, partition):
        body = f"SessionUUID={session}".encode()
        value = encode_callback(RawCallback("POST", b"", "", body, 0, ""))
        with redis_server.client() as client:
            return client.xadd(keys.callbacks(partition), {CALLBACK_FIELD: value}).decode()

    before = add("a", 0)
    connection = await RedisEndpoint(settings).connect("test")
    arrivals = Arrivals(connection, keys, 2)
    await arrivals.start()
    task = asyncio.create_task(arrivals.run())
    first, other, second = add("a", 0), add("b", 1), add("a", 0)
    with redis_server.client() as client:
        client.xadd(keys.callbacks(1), {"foreign": "entry"})
    last = add("b", 1)
    assert await arrivals.place("b", last, timeout_s=5) == 2
    assert await arrivals.place("a", second, timeout_s=5) == 2
    assert await arrivals.place("a", first, timeout_s=5) == 1
    assert await arrivals.place("b", other, timeout_s=5) == 1
    assert await arrivals.place("a", before, timeout_s=0.01) is None
    assert arrivals.total == 5
    connection.close()
    await task
    # Nobody waits for what can no longer come.
    async with asyncio.timeout(1):
        assert await arrivals.place("a", "9-9", timeout_s=60) is None


def test_listener_can_be_removed():
    end = listen(lambda _: None)
    end()
    with pytest.raises(ValueError, match="not in list"):
        end()


def test_comparison_counts_missing_repeated_and_misplaced_events():
    def events(*numbers, **changes):
        return [handled(number=number, **changes) for number in numbers]

    def sent(*numbers):
        return Counter(("5f598579-1d3e", "SessionParamUpdate", number) for number in numbers)

    assert compare(sent(1, 2, None), events(1, None, 2)).good
    assert compare(sent(1, 2, 3), events(1, 3)) == (3, 1, 0, 0)
    assert compare(sent(1, 2), events(1, 2, 2)) == (2, 0, 1, 1)
    assert compare(sent(1, 2), events(2, 1)) == (2, 0, 0, 1)
    assert compare(sent(1, 2), [*events(2), *events(1, order="late")]).good
    # Lanes and runs count apart.
    assert compare(sent(2, 1), [*events(2), *events(1, recording=True)]).good
    assert compare(sent(2, 1), [*events(2), *events(1, run=1)]).good
