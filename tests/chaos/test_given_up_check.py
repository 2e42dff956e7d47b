"""Which numbers may be given up though they were answered 200: those of a node that could not say what it held."""

import pytest
from checker_kit import ENDING, GAP_TIMEOUT_S, HistoryBuilder
from given_up_check import REACH_S
from msgspec.structs import replace

SENT, DUE = 2.0, 2.0 + GAP_TIMEOUT_S


def given_up(*, at: float = DUE + 0.1, answered: float = SENT - 0.5) -> HistoryBuilder:
    """1 is handled, 2 was answered by ingest-1, 3 was sent at SENT, and is called without it."""
    it = HistoryBuilder()
    it.numbers(1, at=0.5)
    it.sent("s2", 2, at=answered, node="ingest-1")
    it.sent("s3", 3, at=SENT)
    it.call("s3", at, order="after_gap", missing=[2])
    it.call("s2", at + 1.0, order="late")
    return it


def test_number_of_a_node_that_was_well_is_given_up_too_early():
    it = given_up()
    assert it.broken == {"given_up": 1}
    it.fault("stop", "redis", SENT, DUE)
    it.fault("kill", "ingest-0", SENT, DUE)
    assert it.broken == {"given_up": 1}, "neither is an excuse"


@pytest.mark.parametrize(
    ("began", "ended", "excused"),
    [
        (SENT, DUE + 1, True),
        (SENT, DUE - REACH_S + 0.1, True),
        (DUE - 2 * REACH_S, DUE - REACH_S - 0.1, False),
        (DUE + 0.2, DUE + 1, False),
    ],
)
def test_node_that_was_cut_off_when_the_gap_was_due_is_an_excuse(began: float, ended: float, excused: bool):
    it = given_up()
    it.fault("cut", "ingest-1", began, ended)
    assert it.broken == ({} if excused else {"given_up": 1})
    assert it.verdict().counts["given up, its node was dead or cut off"] == excused


def test_node_that_had_said_that_it_holds_something_has_to_be_waited_for_all_the_same():
    it = given_up()
    it.fault("kill", "ingest-1", SENT, DUE + 1)
    it.said("ingest-1", SENT - 1)
    assert it.broken == {"given_up": 1}
    it.said("ingest-1", SENT - 0.5, held=False)
    assert it.broken == {}


def test_notice_has_lapsed_some_time():
    it = given_up(at=DUE + 100)
    it.facts = [fact for fact in it.facts if getattr(fact, "tag", "") != "s3"]
    it.asked.pop("s3")
    it.sent("s3", 3, at=SENT + 100)
    it.call("s3", DUE + 100.1, order="after_gap", missing=[2])
    it.fault("kill", "ingest-1", SENT, DUE + 100)
    it.said("ingest-1", SENT)
    assert it.broken == {}


def test_callback_that_was_answered_after_the_gap_was_due_has_come_too_late():
    it = given_up(answered=DUE)
    assert it.broken == {}
    assert it.verdict().counts["given up, answered too late"] == 1


def test_gap_is_due_by_the_first_event_that_waited_and_by_the_session_timeout():
    it = given_up(answered=SENT + 0.5)
    assert it.broken == {"given_up": 1}
    it.sent("s4", 4, at=SENT - 0.6)
    it.call("s4", DUE + 0.2)
    assert it.broken == {}, "4 had waited since before 3 came"
    it = given_up(answered=SENT + 0.5)
    it.facts.insert(1, replace(it.asked["s3"], began=SENT - 0.6, status=0))
    assert it.broken == {}, "3 was sent before, and may have been taken without an answer"
    it = given_up(at=SENT + 0.5, answered=SENT + 0.1)
    it.sent("end", event=ENDING, at=SENT + 0.1)
    for handler in ("every", "ends"):
        it.call("end", SENT + 0.6, handler=handler)
    assert it.broken == {}, "answered after the SessionTimeout was sent"


def test_late_event_whose_number_nobody_gave_up_is_misplaced():
    it = HistoryBuilder()
    it.numbers(1, 2, 3)
    it.sent("again", 2, at=2.0)
    it.call("again", 3.0, order="late")
    assert it.broken == {}, "another callback of that number"
    it.sent("damaged", 2**53 - 1, at=2.0)
    it.call("damaged", 3.1, order="late")
    assert it.broken == {}
    it.sent("s5", 5, at=2.0)
    it.call("s5", 3.2, order="late")
    assert it.broken == {"given_up": 1}


def test_event_that_was_never_called_may_have_given_the_number_up():
    it = HistoryBuilder()
    it.numbers(1, at=0.5)
    it.sent("s2", 2, at=2.0)
    it.sent("s3", 3, at=2.0)
    it.call("s2", 3.0, order="late")
    it.waits("s3", "every")
    assert it.broken == {"given_up": 1}
    it.waits("s3", "every", missing=[2])
    assert it.broken == {}
