import re
from itertools import product
from pathlib import Path
from typing import get_args

from maskline.schemas.call_summary import EndedBy
from maskline.schemas.calls.call_end import CALL_ENDS, LEGS_SILENCE_MS, EndSigns, ended_by
from maskline.schemas.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "modules" / "call-summary.md"


def test_docs_show_the_table_as_it_is():
    section = PAGE.read_text().partition("\n## When is a call over?\n")[2].partition("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in row.split("|")[1:-1])
        for row in re.findall(r"^\| `.*$", section, re.MULTILINE)
    ]
    assert rows[1:] == [(f"`{row.ended_by}`", row.when, row.why) for row in CALL_ENDS]


def test_every_way_to_end_has_a_row_and_the_first_that_holds_counts():
    assert [row.ended_by for row in CALL_ENDS] == list(get_args(EndedBy))
    for signs in map(EndSigns._make, product((False, True), repeat=6)):
        followed = signs.later_call or signs.timed_out or signs.silence or signs.legs_silence
        holds = {
            "parties_hangup": signs.done,
            "both_legs": signs.legs_silence or (signs.legs_over and followed),
            "next_call": signs.later_call,
            "session_timeout": signs.timed_out,
            "silence": signs.silence,
        }
        assert ended_by(signs) == next((row.ended_by for row in CALL_ENDS if holds[row.ended_by]), None)


def test_the_wait_for_parties_hangup_is_longer_than_a_gap_may_hold_it_back():
    settings = Settings()
    assert settings.gap_timeout_ms + settings.gap_spool_ms < LEGS_SILENCE_MS
    assert "90 s" in CALL_ENDS[1].when
    assert LEGS_SILENCE_MS == 90_000
