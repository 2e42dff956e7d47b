"""The checker against histories that break each promise, and against those that only look as though they did.

Longer than other files: a few lines for each rule and each excuse of the checker, which are read beside each other.
"""

import pytest
from checker_kit import ATTEMPTS, CALLED, ENDING, LEASE_S, HistoryBuilder
from history import Leftover
from order_check import RACE_S
from served_check import SERVED_MIN


@pytest.fixture
def builder() -> HistoryBuilder:
    """A session of two numbers, handled in order."""
    it = HistoryBuilder()
    it.numbers(1, 2)
    return it


def test_history_without_a_fault_passes(builder: HistoryBuilder):
    builder.sent("t", event=ENDING)
    builder.call("t", 2.0)
    builder.call("t", 2.1, handler="ends")
    verdict = builder.verdict()
    assert verdict.good
    assert verdict.counts["callbacks answered 200"] == 3
    assert verdict.counts["in_order"] == 2


# Lost


def test_answered_and_never_handled_is_lost(builder: HistoryBuilder):
    builder.sent("x")
    assert builder.broken == {"lost": 1}


def test_not_answered_200_may_be_handled_or_not(builder: HistoryBuilder):
    for tag, status in (("a", 0), ("b", 503), ("c", 0)):
        builder.sent(tag, status=status)
    builder.call("c", 3.0)
    assert builder.broken == {}


def test_answered_at_the_second_try_counts_as_answered(builder: HistoryBuilder):
    builder.sent("x", status=503)
    builder.sent("x", status=200)
    assert builder.broken == {"lost": 1}
    builder.call("x", 3.0)
    assert builder.broken == {}


def test_every_subscribed_handler_is_checked(builder: HistoryBuilder):
    builder.sent("x", event=ENDING)
    builder.call("x", 3.0)
    assert builder.broken == {"lost": 1}
    builder.call("x", 3.1, handler="ends")
    assert builder.broken == {}


@pytest.mark.parametrize("handler", ["every", None])
def test_a_dead_letter_is_an_end_as_well(builder: HistoryBuilder, handler: str | None):
    builder.sent("x")
    builder.letter("x", handler)
    assert builder.broken == {}


def test_a_dead_letter_for_one_handler_does_not_stand_for_the_other(builder: HistoryBuilder):
    builder.sent("x", event=ENDING)
    builder.letter("x", "ends")
    assert builder.broken == {"lost": 1}


def test_a_call_that_failed_or_was_cancelled_is_no_end(builder: HistoryBuilder):
    for tag, outcome in (("a", "failed"), ("b", "cancelled")):
        builder.sent(tag, session=tag)
        builder.call(tag, 3.0, outcome=outcome)
    assert builder.broken == {"lost": 2}


# Misordered


def test_numbers_that_fall_under_one_owner_are_misordered():
    builder = HistoryBuilder()
    builder.numbers(1, 3, 2)
    assert builder.broken == {"misordered": 2}, "3 came before 2 was handled, and 2 after 3"


def test_lanes_and_sessions_are_numbered_apart(builder: HistoryBuilder):
    builder.numbers(1, 2, session="other", at=1.05)
    for number in (1, 2):
        builder.sent(f"r{number}", number, event="SessionRecordingInitiated")
        builder.call(f"r{number}", 2.0 + number / 10)
    assert builder.broken == {}


def test_a_run_that_never_began_is_misordered(builder: HistoryBuilder):
    """Also where all that shows it is one callback that came again with a change."""
    builder.sent("again", 2)
    builder.call("again", 3.0, order="late", run=1)
    assert builder.broken == {"misordered": 1}


def test_another_callback_of_a_number_may_be_late(builder: HistoryBuilder):
    for tag, number in (("again", 2), ("damaged", 2**53 - 1)):
        builder.sent(tag, number)
        builder.call(tag, 3.0 + len(tag), order="late")
    assert builder.broken == {}


def test_in_order_without_the_number_before_it_is_misordered(builder: HistoryBuilder):
    builder.sent("late", 4)
    builder.call("late", 3.0)
    assert builder.broken == {"misordered": 1}


def test_a_gap_that_is_flagged_is_none(builder: HistoryBuilder):
    builder.sent("s4", 4)
    builder.call("s4", 3.0, order="after_gap", missing=[3])
    builder.sent("s3", 3, at=3.5)
    builder.call("s3", 4.0, order="late")
    verdict = builder.verdict()
    assert verdict.good
    assert (verdict.counts["after_gap"], verdict.counts["late"]) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "began", "token", "excused"),
    [
        ("fail_over", 1.05, 2, True),
        ("come_back", 1.05, 2, True),
        ("kill", 1.05, 2, False),
        ("fail_over", 2.5, 2, False),
        ("fail_over", 1.05, 1, False),
    ],
)
def test_handled_number_may_be_named_missing_only_where_a_failover_took_it_back(
    builder: HistoryBuilder, kind: str, began: float, token: int, excused: bool
):
    builder.sent("s3", 3)
    builder.fault(kind, "redis", began, began + 0.1)
    builder.call("s3", 3.0, order="after_gap", missing=[2], token=token)
    assert builder.broken == ({} if excused else {"misordered": 1})


@pytest.mark.parametrize("missing", [[], [2, 3], [1, 2, 3]], ids=str)
def test_a_flag_that_says_what_is_not_so_is_misordered(builder: HistoryBuilder, missing: list[int]):
    builder.sent("s4", 4)
    builder.call("s4", 3.0, order="after_gap", missing=missing)
    assert builder.broken == {"misordered": 1}


def test_a_number_cannot_be_unsequenced(builder: HistoryBuilder):
    builder.sent("s3", 3)
    builder.call("s3", 3.0, order="unsequenced")
    assert builder.broken == {"misordered": 1}


def test_two_callbacks_of_one_number_in_order_are_misordered(builder: HistoryBuilder):
    builder.sent("again", 2)
    builder.call("again", 3.0)
    assert builder.broken == {"misordered": 1}


def test_a_retry_before_the_next_number_is_in_order():
    builder = HistoryBuilder()
    builder.sent("s1", 1)
    builder.sent("s2", 2)
    builder.call("s1", 1.0, outcome="failed")
    builder.call("s1", 1.5, attempt=2)
    builder.call("s2", 2.0)
    assert builder.broken == {}


def test_a_retry_after_the_next_number_is_misordered():
    builder = HistoryBuilder()
    builder.sent("s1", 1)
    builder.sent("s2", 2)
    builder.call("s1", 1.0, outcome="failed")
    builder.call("s2", 1.2)
    builder.call("s1", 1.5, attempt=2)
    assert builder.broken == {"misordered": 3}, "2 overtakes 1, is not in order, and 1 comes after it"


def test_handlers_have_an_order_each(builder: HistoryBuilder):
    """One is behind another, and beside it."""
    for number in (3, 4):
        builder.sent(f"s{number}", number, event=CALLED)
    builder.call("s3", 1.3, took=0.5)
    builder.call("s3", 1.4, handler="remote", outcome="failed")
    builder.call("s4", 1.5, handler="skips", skipped=[])
    builder.call("s4", 2.0)
    builder.call("s3", 2.1, handler="remote", attempt=2)
    builder.call("s4", 2.2, handler="remote")
    assert builder.broken == {"lost": 1, "misordered": 1}, "skips left 3 out"
    builder.call("s3", 1.45, handler="skips")
    assert builder.broken == {}


@pytest.mark.parametrize("skipped", [(), (1,), (1, 2)], ids=str)
def test_after_an_event_that_was_given_up_its_number_is_named(skipped: tuple[int, ...]):
    builder = HistoryBuilder()
    for number in (1, 2):
        builder.sent(f"s{number}", number, event=CALLED)
        for handler in ("every", "remote"):
            builder.call(f"s{number}", number * 1.0, handler=handler)
    for attempt in (1, 2, 3):
        builder.call("s1", 1.0 + attempt / 10, handler="skips", outcome="failed", attempt=attempt)
    builder.letter("s1", "skips")
    builder.call("s2", 2.0, handler="skips", skipped=skipped)
    assert builder.broken == ({} if skipped == (1,) else {"misordered": 1})


def parked() -> HistoryBuilder:
    """A session of which `every` has given the first event up; the second waits behind it."""
    builder = HistoryBuilder()
    for number in (1, 2):
        builder.sent(f"s{number}", number)
    for attempt in (1, 2, 3):
        builder.call("s1", attempt / 10, outcome="failed", attempt=attempt)
    return builder


def test_events_behind_a_dead_letter_are_not_lost():
    builder = parked()
    builder.letter("s1", "every")
    assert builder.broken == {"lost": 1}
    builder.waits("s2", "every")
    assert builder.broken == {}


def test_nothing_goes_on_behind_a_dead_letter_until_it_is_replayed_or_discarded():
    builder = parked()
    builder.letter("s1", "every")
    builder.call("s2", 2.0, skipped=[1])
    assert builder.broken == {"misordered": 1}
    builder.discarded("s1", "every", 2.1)
    assert builder.broken == {"misordered": 1}, "too late"
    builder.facts.pop()
    builder.discarded("s1", "every", 1.9)
    assert builder.broken == {}


def test_replayed_event_comes_before_those_behind_it():
    builder = parked()
    builder.call("s1", 2.0, replayed=True)
    builder.call("s2", 2.1)
    assert builder.broken == {}


def test_two_calls_of_a_session_at_once_are_misordered(builder: HistoryBuilder):
    builder.sent("x")
    builder.call("x", 1.105, took=1.0)
    assert builder.broken == {"misordered": 1}, "2 is under way"


def test_the_numbers_after_a_takeover_begin_where_nothing_was_committed(builder: HistoryBuilder):
    builder.killed(100, 1.2)
    builder.call("s2", 2.5, token=2, pid=200)
    builder.sent("s3", 3)
    builder.call("s3", 2.6, token=2, pid=200)
    assert builder.broken == {}


def test_a_takeover_that_leaves_a_number_out_is_misordered(builder: HistoryBuilder):
    builder.killed(100, 1.2)
    builder.sent("s3", 3, status=0)
    builder.sent("s4", 4)
    builder.call("s4", 2.6, token=2, pid=200)
    assert builder.broken == {"misordered": 1}


@pytest.mark.parametrize("disturbed", [True, False], ids=["stopped", "undisturbed"])
def test_an_owner_that_was_stopped_may_overlap_with_the_next(builder: HistoryBuilder, disturbed: bool):
    builder.sent("s3", 3)
    builder.call("s3", 2.0, took=3.0)
    builder.call("s3", 4.0, token=2, pid=200)
    if disturbed:
        builder.fault("stop", "worker-0", 2.005, 4.9, pid=100)
    assert builder.broken == ({} if disturbed else {"misordered": 1, "doubled": 1})
    assert builder.verdict().counts["at once, of a disturbed owner"] == disturbed


def test_no_fault_excuses_two_calls_at_once_of_one_owner(builder: HistoryBuilder):
    builder.fault("stop", "worker-0", 1.0, 3.0, pid=100)
    builder.fault("kill", "redis", 1.0, 3.0)
    builder.sent("x")
    builder.call("x", 1.105)
    assert builder.broken == {"misordered": 1}


@pytest.mark.parametrize(
    ("resumed_after_s", "calls", "broken"),
    [(-0.1, 1, {}), (-0.1, 2, {"misordered": 1}), (-LEASE_S - 0.1, 1, {"misordered": 1})],
    ids=["one", "two", "much-later"],
)
def test_an_old_owner_may_start_one_call_right_after_it_was_stopped(
    builder: HistoryBuilder, resumed_after_s: float, calls: int, broken: dict[str, int]
):
    """It looked at its lease before."""
    at = 6.0
    builder.fault("stop", "worker-0", 2.0, at + resumed_after_s, pid=100)
    builder.sent("other", session="other")
    builder.call("other", 3.5, token=2, pid=200)
    for count in range(calls):
        builder.sent(f"x{count}", session=f"x{count}")
        builder.call(f"x{count}", at + count / 10)
    assert builder.broken == broken


@pytest.mark.parametrize(("after_s", "broken"), [(RACE_S / 2, {}), (RACE_S * 2, {"misordered": 1})])
def test_an_owner_that_is_cut_off_starts_nothing_once_it_is_replaced(
    builder: HistoryBuilder, after_s: float, broken: dict[str, int]
):
    builder.fault("cut", "worker-0", 2.0, 5.0, pid=100)
    builder.sent("new", session="new")
    builder.call("new", 3.5, token=2, pid=200)
    builder.sent("old", session="old")
    builder.call("old", 3.5 + after_s)
    assert builder.broken == broken


# Doubled


@pytest.mark.parametrize(
    ("kind", "target", "pid", "began", "ended", "excused"),
    [
        ("stop", "worker-0", 100, 1.105, 3.0, True),
        ("cut", "worker-0", 100, 0.5, 1.05, True),
        ("cut", "worker-0", 100, 1.11 + LEASE_S - 0.1, 4.0, True),
        ("kill", "redis", 9, 1.2, 1.5, True),
        ("restart", "worker-0", 100, 1.105, 3.0, False),
        ("stop", "worker-1", 200, 1.105, 3.0, False),
        ("cut", "ingest-0", 300, 1.105, 3.0, False),
        ("cut", "worker-0", 100, 1.11 + LEASE_S + 0.1, 4.0, False),
        ("cut", "worker-0", 100, 0.0, 1.1 - LEASE_S - 0.01, False),
    ],
    ids=[
        "stopped",
        "cut-before",
        "cut-after",
        "redis-killed",
        "restarted",
        "another-worker",
        "ingest",
        "too-late",
        "too-early",
    ],
)
def test_only_a_fault_of_its_first_owner_excuses_a_second_call(
    builder: HistoryBuilder, kind: str, target: str, pid: int, began: float, ended: float, excused: bool
):
    builder.call("s2", 5.0, token=2, pid=200)
    builder.fault(kind, target, began, ended, pid=pid)
    assert builder.broken == ({} if excused else {"doubled": 1})
    assert builder.verdict().counts["doubled in the crash window"] == excused


def test_a_log_that_nobody_reads_is_no_excuse(builder: HistoryBuilder):
    builder.call("s2", 5.0, token=2, pid=200)
    builder.fault("log", "worker-0", 1.0, 3.0, pid=100)
    assert builder.broken == {"doubled": 1}


def test_a_kill_long_after_the_commit_was_due_is_no_excuse(builder: HistoryBuilder):
    builder.killed(100, 1.11 + LEASE_S + 0.1)
    builder.call("s2", 5.0, token=2, pid=200)
    assert builder.broken == {"doubled": 1}


def test_nothing_excuses_a_second_time_under_the_same_owner(builder: HistoryBuilder):
    builder.fault("kill", "redis", 1.1, 1.5)
    builder.call("s2", 2.0)
    assert builder.broken == {"doubled": 1}


def test_handlers_are_counted_apart(builder: HistoryBuilder):
    builder.sent("x", event=ENDING)
    builder.call("x", 2.0)
    builder.call("x", 2.1, handler="ends")
    assert builder.broken == {}
    builder.call("x", 2.2, handler="ends")
    assert builder.broken == {"doubled": 1}


@pytest.mark.parametrize(
    ("attempt", "broken"), [(1, {}), (ATTEMPTS, {"doubled": 1})], ids=["open", "settled"]
)
def test_an_event_is_open_as_long_as_one_of_its_handlers_is(attempt: int, broken: dict[str, int]):
    """Its commit waits for the other one's retries."""
    builder = HistoryBuilder()
    builder.sent("x", event=ENDING)
    builder.call("x", 1.0)
    builder.call("x", 1.1, handler="ends", outcome="failed", attempt=attempt)
    builder.letter("x", "ends")
    builder.killed(100, 1.0 + 3 * LEASE_S)
    builder.call("x", 6.0, token=2, pid=200)
    assert builder.broken == broken


def test_clean_handover_between_two_tries_excuses_no_second_time():
    builder = HistoryBuilder()
    builder.sent("x", event=ENDING)
    builder.call("x", 1.0)
    builder.call("x", 1.1, handler="ends", outcome="failed")
    builder.call("x", 1.3, handler="ends", attempt=2, token=2, pid=200)
    assert builder.broken == {}
    builder.call("x", 1.2, token=2, pid=200)
    assert builder.broken == {"doubled": 1}


def test_what_an_operator_runs_again_may_come_twice(builder: HistoryBuilder):
    builder.call("s1", 3.0, replayed=True)
    assert builder.broken == {"doubled": 1, "misordered": 1}
    builder.rerun("s", 2.9)
    builder.call("s2", 3.1, replayed=True)
    assert builder.broken == {}
    assert builder.verdict().counts["run again by an operator"] == 2


def test_a_second_key_is_doubled_even_in_a_crash_window(builder: HistoryBuilder):
    builder.killed(100, 1.2)
    builder.call("s2", 3.0, token=2, pid=200, key="another")
    assert builder.broken == {"doubled": 1}


def test_a_key_of_two_callbacks_is_doubled(builder: HistoryBuilder):
    builder.sent("x")
    builder.call("x", 3.0, key="key of s2")
    assert builder.broken == {"doubled": 1}


# Attempts


@pytest.mark.parametrize(("attempt", "broken"), [(1, {"attempts": 1}), (2, {}), (3, {"attempts": 1})])
def test_tries_are_counted_on_by_the_next_owner(attempt: int, broken: dict[str, int]):
    builder = HistoryBuilder()
    builder.sent("x")
    builder.call("x", 1.0, outcome="failed")
    builder.call("x", 2.0, attempt=attempt, token=2, pid=200)
    assert builder.broken == broken


def test_only_a_crash_excuses_forgotten_tries():
    builder = HistoryBuilder()
    builder.sent("x")
    builder.call("x", 1.0, outcome="failed")
    builder.killed(100, 1.1)
    builder.call("x", 2.0, token=2, pid=200)
    verdict = builder.verdict()
    assert verdict.good
    assert verdict.counts["tries forgotten in a crash"] == 1


@pytest.mark.parametrize(
    ("target", "attempt", "broken"),
    [("redis", 3, {}), ("redis", 4, {"attempts": 1}), ("worker-0", 3, {"attempts": 1})],
)
def test_tries_that_a_failover_forgot_and_brought_back_are_counted_on(
    target: str, attempt: int, broken: dict[str, int]
):
    builder = HistoryBuilder()
    builder.sent("x")
    builder.call("x", 1.0, outcome="failed")
    builder.call("x", 1.1, outcome="failed", attempt=2)
    builder.killed(100, 1.2)
    builder.call("x", 2.0, outcome="failed", token=2, pid=200)
    builder.fault("come_back", target, 1.5, 2.5, pid=1)
    builder.call("x", 3.0, attempt=attempt, token=3, pid=200)
    assert builder.broken == broken


def test_a_try_while_the_handler_is_held_is_not_counted(builder: HistoryBuilder):
    builder.sent("s3", 3, event=CALLED)
    for at, handler in ((2.0, "every"), (2.1, "skips")):
        builder.call("s3", at, handler=handler)
    for at, attempt in ((2.2, 1), (2.3, 1), (2.4, 2)):
        builder.call("s3", at, handler="remote", outcome="failed", attempt=attempt)
    builder.call("s3", 3.0, handler="remote", attempt=2)
    assert builder.broken == {}
    builder.call("s3", 2.5, handler="remote", outcome="failed", attempt=1)
    assert builder.broken == {"attempts": 1}


def test_a_replay_counts_from_one():
    builder = parked()
    builder.call("s1", 2.0, attempt=4, replayed=True)
    builder.call("s2", 2.1)
    assert builder.broken == {"attempts": 1}


@pytest.mark.parametrize(("outcome", "broken"), [("failed", {"attempts": 1}), ("rejected", {})])
def test_what_time_decides_is_given_up_by_a_rejection_alone(outcome: str, broken: dict[str, int]):
    builder = HistoryBuilder()
    builder.sent("x", 1, event=CALLED)
    for at, handler in ((1.0, "every"), (1.1, "skips")):
        builder.call("x", at, handler=handler)
    builder.call("x", 1.2, handler="remote", outcome=outcome)
    builder.letter("x", "remote")
    assert builder.broken == broken


# Held up


def slow_beside(builder: HistoryBuilder, *, others: int, served_at: float, outcome: str = "done") -> None:
    builder.sent("slow", session="slow")
    builder.call("slow", 10.0, took=2.0, outcome=outcome)
    if outcome == "failed":
        builder.letter("slow", "every")
    for count in range(others):
        builder.sent(f"o{count}", session=f"o{count}", at=10.1)
        builder.call(f"o{count}", served_at + count / 100)


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_slow_event_beside_which_nobody_is_served_holds_up(builder: HistoryBuilder, outcome: str):
    slow_beside(builder, others=SERVED_MIN, served_at=12.1, outcome=outcome)
    assert builder.broken == {"held_up": 1}


def test_a_slow_event_beside_which_others_are_served_does_not(builder: HistoryBuilder):
    slow_beside(builder, others=SERVED_MIN, served_at=10.2)
    verdict = builder.verdict()
    assert verdict.good
    assert verdict.counts["slow events looked at"] == 1


def test_with_few_other_events_there_is_no_verdict(builder: HistoryBuilder):
    slow_beside(builder, others=SERVED_MIN - 1, served_at=12.1)
    assert builder.verdict().counts["slow events looked at"] == 0


@pytest.mark.parametrize(
    ("target", "pid"), [("worker-0", 100), ("redis", 9), ("ingest-0", 300)], ids=["owner", "redis", "ingest"]
)
def test_a_fault_explains_that_nobody_was_served(builder: HistoryBuilder, target: str, pid: int):
    slow_beside(builder, others=SERVED_MIN, served_at=12.1)
    builder.fault("stop", target, 9.0, 10.05, pid=pid)
    assert builder.broken == {}


@pytest.mark.parametrize(
    ("drained_at", "broken"), [(12.0, {}), (9.9, {"held_up": 1})], ids=["after", "before"]
)
def test_callbacks_that_come_while_a_spool_is_drained_may_wait_behind_it(
    builder: HistoryBuilder, drained_at: float, broken: dict
):
    slow_beside(builder, others=SERVED_MIN, served_at=12.1)
    builder.said("ingest-0", 5.0)
    builder.said("ingest-0", 7.0)
    builder.said("ingest-0", drained_at, held=False)
    assert builder.broken == broken


@pytest.mark.parametrize(("asked_at", "broken"), [(10.02, {}), (11.9, {"held_up": 1})], ids=["soon", "late"])
def test_an_owner_that_is_asked_to_stop_serves_nobody_beside_it(
    builder: HistoryBuilder, asked_at: float, broken: dict
):
    """But what it owed until then, it owed."""
    slow_beside(builder, others=SERVED_MIN, served_at=12.1)
    builder.fault("restart", "worker-0", asked_at, 12.5, pid=100)
    assert builder.broken == broken


# Left, unexplained


def test_event_that_was_set_aside_may_not_be_left_without_an_operator(builder: HistoryBuilder):
    builder.sent("x")
    builder.waits("x", "every", parked=False)
    assert builder.broken == {"lost": 1, "left": 1}


@pytest.mark.parametrize(
    ("code", "said", "broken"),
    [(1, "Redis is away", {}), (2, "", {"unexplained": 1}), (1, "Traceback", {"unexplained": 1})],
)
def test_command_of_an_operator_ends_as_commands_do(
    builder: HistoryBuilder, code: int, said: str, broken: dict[str, int]
):
    builder.operated("dead replay --all", code=code, said=said)
    assert builder.broken == broken


@pytest.mark.parametrize(("pending", "lag"), [(1, 0), (0, 1), (0, None), (None, None)], ids=str)
def test_what_is_not_acknowledged_or_not_read_is_left(
    builder: HistoryBuilder, pending: int | None, lag: int | None
):
    builder.left = [Leftover(0, pending, lag)]
    assert builder.broken == {"left": 1}


def test_partition_that_was_not_inspected_is_left(builder: HistoryBuilder):
    builder.left = []
    assert builder.broken == {"left": 1}


@pytest.mark.parametrize(
    ("code", "asked", "broken"),
    [(-9, "kill", {}), (0, "term", {}), (-9, "term", {"unexplained": 1}), (1, "", {"unexplained": 1})],
    ids=["killed", "stopped", "did-not-stop", "died"],
)
def test_a_process_ends_only_as_it_was_asked(
    builder: HistoryBuilder, code: int, asked: str, broken: dict[str, int]
):
    builder.exited(100, 9.0, code=code, asked=asked)
    assert builder.broken == broken


def test_a_call_without_an_end_needs_a_kill(builder: HistoryBuilder):
    builder.sent("x", session="x")
    builder.call("x", 2.0, took=None)
    builder.call("x", 5.0, token=2, pid=200)
    assert builder.broken == {"unexplained": 1}
    builder.killed(100, 2.001)
    assert builder.broken == {}
    assert builder.verdict().counts["calls cut"] == 1


def test_a_callback_that_was_never_sent_is_unexplained(builder: HistoryBuilder):
    builder.call("nobody's", 3.0)
    assert builder.broken == {"unexplained": 1}


def test_history_without_terms_cannot_be_checked():
    builder = HistoryBuilder()
    del builder.facts[0]
    with pytest.raises(LookupError):
        builder.verdict()
