"""Log events can be found by grep, and `docs/logs.md` explains each."""

import re
from pathlib import Path

import pytest
from log_events_kit import PAGE, events_of, logged_events, page_rows

EVENT_MAX_CHARS = 60
EVENT = re.compile(r"(?!(?:a|an|the) )[a-z0-9]+(?:[ _/-][a-z0-9_]+)*")
"""Lower case words without an article or punctuation: what is logged, and no sentence about it."""


def test_page_has_a_row_for_each_log_event_and_no_other():
    code = {logged.row for logged in logged_events() if logged.event is not None}
    assert len(code) > 50
    rows = page_rows()
    assert code - rows.keys() == set(), (
        f"run python tests/log_events_kit.py, and fill in the rows of {PAGE.name}"
    )
    assert rows.keys() - code == set()
    assert [row for row, meaning in rows.items() if not meaning] == []


def test_log_events_are_constant_short_and_lower_case():
    wrong = [
        logged.event or f"{logged.module}: not constant"
        for logged in logged_events()
        if logged.event is None or len(logged.event) > EVENT_MAX_CHARS or not EVENT.fullmatch(logged.event)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ('_log.info("lease lost", partition=1)', "lease lost"),
        ('LOST: Final = "lease lost"\n_log.info(LOST)', "lease lost"),
        ('self.context.log.info("lease lost")', "lease lost"),
        ('get_logger("maskline").info("lease lost")', "lease lost"),
        ('_log.info(f"lease {number} lost")', None),
        ("write = _log.info", None),
    ],
)
def test_log_calls_are_found_in_every_form(source: str, event: str | None):
    assert [(logged.event, logged.level) for logged in events_of(source, Path("worker/a.py"))] == [
        (event, "info")
    ]


def test_choice_between_two_levels_is_an_event_of_each():
    source = 'log = _log.error if final else _log.warning\nlog("lease lost")'
    found = [(logged.event, logged.level) for logged in events_of(source, Path("worker/a.py"))]
    assert found == [("lease lost", "error"), ("lease lost", "warning")]


def test_methods_of_the_same_name_are_no_log_calls():
    assert list(events_of("task.exception()\nparser.error('no')", Path("worker/a.py"))) == []
