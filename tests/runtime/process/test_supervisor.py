"""Several processes: started, watched, started again, stopped together."""

import json
import os
import signal
import sys
import time

import pytest

from maskline.runtime.process.supervisor import (
    PROCESSES_MAX,
    RESTART_FIRST_S,
    RESTART_MAX_S,
    START_KILL_S,
    START_WARN_S,
    STEADY_S,
    Child,
    SilenceTimer,
    supervise,
)
from maskline.schemas.errors import ConfigError

CHILD = """
index = sys.argv[sys.argv.index("--index") + 1]
async def main(stop):
    supervisor_pipe.report_up()
    say("ready", index, os.getpid())
    await stop.wait()
    say("stopped", index)
    return 0
process.run_command(lambda argv: process.run(main))
"""
PARENT = """
def supervise(argv):
    return supervisor.supervise(['child', *argv[1:]], int(argv[0]), stop_timeout_ms=100)
process.run_command(supervise)
"""


def stopped(out):
    return sorted(line.split()[1] for line in out.splitlines() if line.startswith("stopped"))


def test_children_are_numbered_and_stop_with_their_supervisor(start):
    run = start(PARENT, "3", child=CHILD)
    pids = run.children(3)
    assert sorted(pids) == [0, 1, 2]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1", "2"], "")


def test_signal_to_the_group_and_its_forwarded_copy_are_one_request(start):
    run = start(PARENT, "2", child=CHILD)
    pids = run.children(2)
    for pid in (*pids.values(), run.process.pid):
        os.kill(pid, signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1"], "")


def test_terminals_interrupt_reaches_children_only_from_their_supervisor(start):
    run = start(PARENT, "2", child=CHILD)
    pids = run.children(2)
    assert len({os.getpgid(pid) for pid in (*pids.values(), run.process.pid)}) == 3
    run.signal(signal.SIGINT)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1"], "")


def test_child_that_dies_is_started_again_and_the_others_go_on(start):
    run = start(PARENT, "2", child=CHILD)
    before = run.children(2)
    os.kill(before[1], signal.SIGKILL)
    after = run.children(1)
    assert list(after) == [1]
    assert after[1] != before[1]
    run.signal(signal.SIGTERM)
    code, out, _ = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])


def refusing(when):
    """A child that cannot start where `when`, an expression, is true."""
    start_error = f"""
if {when}:
    def refuse(argv): raise ConfigError("there\\n is no such thing")
    process.run_command(refuse)
async def main"""
    return CHILD.replace("\nasync def main", start_error)


SECOND_START = "not once(f'started {index}') and once(f'refused {index}')"


def test_where_no_child_can_start_the_supervisor_ends_with_2_and_one_line(start):
    # The first takes longer than a restart would.
    run = start(PARENT, "3", child=refusing("index != '0' or not time.sleep(1.5)"))
    assert run.end() == (2, "", "maskline: there is no such thing\n")


def test_child_that_cannot_start_is_tried_again_and_takes_no_sibling_with_it(start):
    run = start(PARENT, "2", child=refusing("index == '1' and once('refused')"))
    pids = run.children(2)
    assert sorted(pids) == [0, 1]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])
    assert "there is no such thing" in err
    assert "process failed to start" in err


def test_child_that_cannot_start_again_after_its_death_takes_no_sibling_with_it(start):
    run = start(
        PARENT,
        "2",
        child=refusing(SECOND_START),
    )
    before = run.children(2)
    os.kill(before[0], signal.SIGKILL)
    after = run.children(1)
    assert list(after) == [0]
    os.kill(before[1], 0)
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])
    assert "there is no such thing" in err


def test_children_that_all_refuse_after_one_came_up_are_tried_again(start):
    run = start(
        PARENT,
        "1",
        child=refusing(SECOND_START),
    )
    os.kill(run.children(1)[0], signal.SIGKILL)
    assert list(run.children(1)) == [0]
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 0


HASTY = (
    "supervisor.CHECK_INTERVAL_S, supervisor.TURN_MAX_S, supervisor.SILENT_WARN_S = 0.2, 0.4, 2.0\n"
    + PARENT.replace("stop_timeout_ms=100", "stop_timeout_ms=100, silent_kill_s=4.0")
)


def test_stopped_child_is_reported_killed_and_replaced(start):
    run = start(HASTY, "2", child=CHILD)
    before = run.children(2)
    os.kill(before[1], signal.SIGSTOP)
    assert list(run.children(1)) == [1]
    os.kill(before[0], 0)
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])
    said = [json.loads(line) for line in err.splitlines()]
    assert [(line["event"], line["index"]) for line in said] == [
        ("process unresponsive", 1),
        ("process killed for blocked event loop", 1),
        ("process died", 1),
    ]


def test_child_with_a_blocked_loop_is_replaced(start):
    run = start(
        HASTY,
        "1",
        child=CHILD.replace("await stop.wait()", "time.sleep(60 * once('blocked'))\n    await stop.wait()"),
    )
    before = run.children(1)
    assert run.children(1) != before
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 0


def test_child_that_blocks_for_less_than_the_bound_goes_on(start):
    run = start(
        HASTY,
        "1",
        child=CHILD.replace("await stop.wait()", "time.sleep(1.5)\n    say('awake')\n    await stop.wait()"),
    )
    run.children(1)
    assert run.line() == ["awake"]
    run.signal(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 0
    assert "killed" not in err


def test_supervisor_that_was_stopped_itself_kills_no_child(start):
    run = start(HASTY, "2", child=CHILD)
    pids = run.children(2)
    for pid in (run.process.pid, *pids.values()):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)  # the time that must not count
    for pid in (run.process.pid, *pids.values()):
        os.kill(pid, signal.SIGCONT)
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])
    assert "killed" not in err


def test_silence_is_counted_by_turns_of_the_supervisor():
    silence_timer = SilenceTimer(kill_s=30.0)
    silence_timer.up = True
    assert silence_timer.elapse(3_600.0) == ""
    assert [silence_timer.elapse(1.0) for _ in range(8)] == [*[""] * 7, "warn"]
    assert silence_timer.heard()
    assert not silence_timer.heard()
    assert [silence_timer.elapse(1.0) for _ in range(30)] == [*[""] * 9, "warn", *[""] * 19, "kill"]


def test_child_that_has_not_come_up_may_be_silent_for_longer():
    silence_timer = SilenceTimer(kill_s=30.0)
    said = [silence_timer.elapse(1.0) for _ in range(int(START_KILL_S))]
    assert said.index("warn") == START_WARN_S - 1
    assert said.index("kill") == START_KILL_S - 1


def test_child_that_fails_at_the_stop_makes_exit_code_1(start):
    run = start(PARENT, "2", child=CHILD.replace("return 0", "return int(index)"))
    run.children(2)
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 1


IGNORING = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("ready", sys.argv[2], os.getpid())
while True:
    time.sleep(60)
"""


def test_child_that_does_not_stop_is_killed(start):
    run = start("supervisor.GRACE_MS = 100\n" + PARENT, "1", child=IGNORING)
    run.children(1)
    run.signal(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 1
    assert "process killed at stop timeout" in err


def test_second_signal_kills_the_children_at_once(start):
    run = start("signals.SECOND_SIGNAL_AFTER_S = 0.0\n" + PARENT, "2", child=IGNORING)
    run.children(2)
    while run.process.poll() is None:
        run.signal(signal.SIGTERM)
        time.sleep(0.01)  # not to wait for it: not to flood it
    assert run.end()[0] == 130


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_no_child_outlives_a_supervisor_that_is_killed(start):
    run = start(PARENT, "2", child=CHILD)
    run.children(2)
    run.signal(signal.SIGKILL)
    code, out, _ = run.end()  # the pipes end with the last child
    assert (code, stopped(out)) == (-signal.SIGKILL, ["0", "1"])


def test_restarts_wait_longer_and_longer_within_bounds():
    child = Child(0, ["child"])
    child.started_at = time.monotonic()
    waits = [child._plan_restart() for _ in range(10)]
    assert waits[:3] == [RESTART_FIRST_S, RESTART_FIRST_S * 2, RESTART_FIRST_S * 4]
    assert waits[-1] == RESTART_MAX_S
    child.started_at = time.monotonic() - STEADY_S
    assert child._plan_restart() == RESTART_FIRST_S
    child.started_at = time.monotonic()
    assert child._plan_restart() == RESTART_FIRST_S * 2


@pytest.mark.parametrize("processes", [0, -1, PROCESSES_MAX + 1])
def test_senseless_number_of_processes_is_refused(processes):
    with pytest.raises(ConfigError, match="--processes"):
        supervise(["child"], processes)
