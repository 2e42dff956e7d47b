"""The handlers in `maskline status`: what waits, which are down or paused, on a real server and as a table."""

from datetime import UTC, datetime

import msgspec
import pytest
from console_kit import command
from pause_kit import Group

from maskline.console.handler_status import (
    DOWN_PROBLEM_S,
    HandlerFacts,
    HandlerStatus,
    find_handler_problems,
    find_handler_warnings,
    handler_statuses,
    span,
    state_text,
)
from maskline.console.status import Status
from maskline.schemas.handler_control import HandlerReport, Pause
from maskline.worker.commands.retry_ops import Append, Park
from maskline.worker.commands.scripts import HandlerBacklog

NOW_MS = 1_800_000_000_000

QUEUES = [("s1", 60_000), ("s1", 0), ("s2", 0), ("s3", 0), ("s3", 0)]
"""Events of sessions, and when their queue would be due if it is new, in ms."""


def status(**changes) -> HandlerStatus:
    values = {"name": "bill", "waiting": 0, "parked": 0, "down": False, "paused": False, "oldest_s": None}
    return HandlerStatus(**(values | {"workers": 2} | changes))


def ago(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW_MS / 1000 - seconds, UTC)


def problems(*handlers: HandlerStatus, workers: int = 2) -> list[str]:
    return list(find_handler_problems(handlers, NOW_MS, workers=workers, dead_ttl_s=1_000))


def warnings(*handlers: HandlerStatus) -> list[str]:
    return list(find_handler_warnings(handlers, NOW_MS))


def test_handlers_are_summed_up_over_partitions_and_live_workers() -> None:
    facts = HandlerFacts(
        {
            "one": {"bill": HandlerReport(NOW_MS - 60_000), "mail": HandlerReport()},
            "two": {"bill": HandlerReport(NOW_MS - 90_000), "mail": HandlerReport(recovering=True)},
            "three": {"bill": HandlerReport()},
            "ended": {"bill": HandlerReport(1), "only there": HandlerReport(1)},
        },
        {"paused by name": Pause(NOW_MS - 5_000, "call +14155550123", "anna@ops")},
        [
            HandlerBacklog("bill", 10, 4, 2_000, 7_000, 3_000, 5, 1, 2),
            HandlerBacklog("bill", 1, 0, 500, 9_000, None, 1, 0, 0),
            HandlerBacklog("mail", 0, 0, None, None, None, 0, 0, 0),
            HandlerBacklog("gone", 3, 0, 0, 8_000, None, 1, 1, 0),
        ],
    )
    by_name = {it.name: it for it in handler_statuses(facts, ["one", "two", "three"], NOW_MS)}
    assert list(by_name) == ["bill", "gone", "mail", "paused by name"]
    assert by_name["bill"] == HandlerStatus(
        name="bill",
        waiting=11,
        parked=4,
        down=True,
        paused=False,
        oldest_s=9.0,
        queues=6,
        due_queues=1,
        parked_queues=2,
        next_due_s=0.5,
        parked_oldest_s=3.0,
        down_since=ago(90),
        down_workers=2,
        workers=3,
    )
    assert (by_name["mail"].recovering, by_name["mail"].down, by_name["mail"].workers) == (True, False, 2)
    assert (by_name["gone"].waiting, by_name["gone"].workers) == (3, 0)
    paused = by_name["paused by name"]
    assert (paused.paused, paused.paused_since, paused.paused_by) == (True, ago(5), "anna@ops")
    assert "5550123" not in paused.paused_why


def test_handler_that_is_down_is_a_problem_after_minutes() -> None:
    short, long = ago(DOWN_PROBLEM_S - 1), ago(DOWN_PROBLEM_S + 1)
    assert not problems(status(down=True, down_since=short, down_workers=1))
    assert warnings(status(down=True, down_since=short, down_workers=1, waiting=7)) == [
        "bill is down for 4 min in 1 of 2 workers: what it calls fails; 7 events wait, none is lost"
    ]
    assert "down for 5 min" in problems(status(down=True, down_since=long, down_workers=2))[0]
    assert not warnings(status(down=True, down_since=long, down_workers=2))


def test_paused_handler_is_a_warning_even_if_it_is_down() -> None:
    handler = status(
        paused=True, paused_since=ago(7_200), paused_by="anna@ops", down=True, down_since=ago(9_000)
    )
    assert not problems(handler)
    assert warnings(handler) == ["bill is paused for 2 h by anna@ops: maskline resume bill"]


def test_events_for_a_handler_that_nobody_runs_are_a_problem() -> None:
    assert "no live worker has" in problems(status(waiting=3, workers=0))[0]
    assert not problems(status(waiting=3, workers=0), workers=0)  # that there is no worker is said elsewhere
    assert not problems(status(workers=0))


def test_parked_events_become_a_problem_before_they_are_given_up() -> None:
    assert not problems(status(waiting=3, parked=3, parked_oldest_s=700))
    assert warnings(status(waiting=3, parked=3, parked_oldest_s=700))
    assert "after 16 min they are given up" in problems(status(waiting=3, parked=3, parked_oldest_s=800))[0]
    assert not problems(status(parked_queues=1, parked_oldest_s=800))  # nothing waits behind it


def test_handler_that_fails_is_no_problem() -> None:
    assert not problems(status(waiting=1_000_000, queues=1_000_000, oldest_s=80_000.0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59.9, "59 s"), (61, "1 min"), (3_600, "1 h"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")],
)
def test_spans_are_short(seconds, text) -> None:
    assert span(seconds) == text


def test_state_in_words() -> None:
    assert state_text(status(), NOW_MS) == "up"
    assert state_text(status(recovering=True), NOW_MS) == "recovering"
    both = status(workers=0, paused=True, paused_why="rates\n\x1bwrong", paused_since=None)
    assert state_text(both, NOW_MS) == "paused (rates \\x1bwrong), no live worker has it"


def test_status_shows_what_is_set_aside(redis_server, namespace, monkeypatch, capsys) -> None:
    group = Group(redis_server, namespace)
    group.live("w1", {"bill": HandlerReport(group.now_ms() - 3_000), "a: b%": HandlerReport()})
    ops = [Append("bill", session, delay_ms, b"event") for session, delay_ms in QUEUES]
    group.commit({0: [*ops, Park("bill", "s3")], 1: [Append("a: b%", "s4", 0, b"event")]})
    command(monkeypatch, redis_server, namespace, "pause", "a: b%", "--why", "rates", MASKLINE_PARTITIONS="4")
    capsys.readouterr()
    assert command(monkeypatch, redis_server, namespace, "status", "--json", MASKLINE_PARTITIONS="4") == 0
    shown = capsys.readouterr().out
    seen = msgspec.json.decode(shown, type=Status)
    assert (seen.set_aside, seen.parked, seen.unread, seen.pending) == (5, 1, 0, 0)
    second, first = seen.handlers
    assert (first.name, first.waiting, first.parked, first.down, first.paused) == ("bill", 4, 1, True, False)
    assert (first.queues, first.due_queues, first.parked_queues, first.next_due_s) == (3, 1, 1, 0.0)
    assert first.oldest_s is not None
    assert 0 <= first.oldest_s < 60
    assert (second.name, second.waiting, second.paused, second.paused_why) == ("a: b%", 1, True, "rates")
    (row, _) = sorted(msgspec.json.decode(shown)["handlers"], key=lambda handler: -handler["waiting"])
    assert row["down_since"]

    assert command(monkeypatch, redis_server, namespace, "status", MASKLINE_PARTITIONS="4") == 0
    table = capsys.readouterr().out
    assert "down for" in table
    assert "paused for" in table
    assert "5 set aside" in table
    assert "healthy" in table
