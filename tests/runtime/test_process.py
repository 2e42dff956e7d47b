"""Real processes and signals. Waiting is for a line, or for the end of a pipe that all processes hold."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from runtime.process import PROCESSES_MAX, RESTART_FIRST_S, RESTART_MAX_S, STEADY_S, _Child, supervise
from schemas.errors import ConfigError

LIMIT_S = 30
"""Far above what any test here takes; then everything is killed and the test fails at its next line."""


class Running:
    """A process, its lines, and those whom it told about."""

    def __init__(self, *argv, env):
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.pids = [self.process.pid]
        self.timer = threading.Timer(LIMIT_S, self.kill)
        self.timer.start()

    def line(self):
        return self.process.stdout.readline().split()

    def children(self, count):
        """The pids of the next `count` children that say they are ready, by index."""
        pids = {}
        while len(pids) < count:
            word, index, pid = self.line()
            if word == "ready":
                pids[int(index)] = int(pid)
        self.pids += pids.values()
        return pids

    def signal(self, signum):
        self.process.send_signal(signum)

    def end(self):
        """Exit code, rest of stdout, stderr, once all processes that hold the pipes have ended."""
        out, err = self.process.communicate()
        self.timer.cancel()
        return self.process.returncode, out, err

    def kill(self):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def start(tmp_path):
    """Starts `python -m NAME` with the given source, which children find as `child`."""
    runs = []

    def begin(source, *argv, child=""):
        (tmp_path / "parent.py").write_text(PRELUDE + textwrap.dedent(source))
        (tmp_path / "child.py").write_text(PRELUDE + textwrap.dedent(child))
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        runs.append(Running("-m", "parent", *argv, env=env))
        return runs[-1]

    yield begin
    for run in runs:
        run.timer.cancel()
        run.process.kill()
        run.process.communicate()


PRELUDE = """
import asyncio, os, signal, sys, threading, time
if "no-uvloop" in sys.argv:
    sys.modules["uvloop"] = None
from runtime import process
from runtime.logs import configure_logging
from schemas.errors import *
from schemas.settings import Settings
configure_logging(Settings(log_format="json"))

def say(*words):
    "One write a line, so that the lines of several processes do not mix."
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

MAIN = """
async def main(stop):
    say("ready", type(asyncio.get_running_loop()).__module__, os.getpid())
    await stop.wait()
    say("stopped")
    return 5
sys.exit(process.run(main))
"""


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_main_and_its_code_is_the_exit_code(start, loop, signum):
    run = start(MAIN, loop)
    assert run.line()[1] == ("uvloop" if loop == "uvloop" else "asyncio.unix_events")
    run.signal(signum)
    assert run.end() == (5, "stopped\n", "")


def test_signals_close_together_are_one_wish(start):
    run = start(
        """
        process.SECOND_SIGNAL_AFTER_S = 60.0
        async def main(stop):
            say("ready")
            await stop.wait()
            say("stopping")
            await asyncio.to_thread(sys.stdin.read)
            return 0
        sys.exit(process.run(main))
        """
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    assert run.line() == ["stopping"]
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGINT)
    assert run.end()[0] == 0  # which closes its stdin


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize("hang", ["while True: time.sleep(0.01)", "await asyncio.Event().wait()"])
def test_a_second_signal_ends_even_a_blocked_loop(start, loop, hang):
    run = start(
        f"""
        process.SECOND_SIGNAL_AFTER_S = 0.0
        async def main(stop):
            say("ready")
            {hang}
        process.run(main)
        """,
        loop,
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    while run.process.poll() is None:
        run.signal(signal.SIGINT)
        time.sleep(0.01)  # not to wait for it: not to flood it
    assert run.end()[0] == 130


def test_what_hangs_at_the_stop_is_ended_and_shown(start):
    run = start(
        """
        process.GRACE_MS = 0
        async def settle_fare_for_ever(stop):
            say("ready")
            while True:
                time.sleep(0.01)
        process.run(settle_fare_for_ever, stop_timeout_ms=100)
        """
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 1
    assert "in settle_fare_for_ever" in err


@pytest.mark.parametrize(
    "where", ["asyncio.to_thread(hang)", "asyncio.sleep(0, threading.Thread(target=hang).start())"]
)
def test_a_thread_that_hangs_keeps_no_process(start, where):
    run = start(
        f"""
        process.THREADS_GRACE_S = 0.1
        def hang():
            say("ready")
            threading.Event().wait()
        async def main(stop):
            task = asyncio.ensure_future({where})
            await stop.wait()
            return 3
        process.cli(lambda argv: process.run(main))
        """
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 3


def test_an_error_in_main_comes_out(start):
    run = start(
        """
        async def main(stop):
            raise ConfigError("MASKLINE_PORT is\\n taken")
        process.cli(lambda argv: process.run(main))
        """
    )
    assert run.end() == (2, "", "maskline: MASKLINE_PORT is taken\n")


ENDS = {
    "return 0": 0,
    "return 1": 1,
    "raise ConfigError('no such\\n thing')": 2,
    "raise RedisUnavailableError('Redis is away')": 1,
    "raise KeyboardInterrupt": 130,
    "raise BrokenPipeError": 1,
    "sys.exit(2)": 2,
    "sys.stdout = sys.stderr = None; raise ConfigError('unheard')": 2,
    "assert argv == sys.argv[1:] == ['--x']; return 4": 4,
}


def test_how_a_command_ends(start):
    run = start(
        f"""
        for body in {list(ENDS)!r}:
            if (pid := os.fork()) == 0:
                exec(f"def main(argv): {{body}}")
                process.cli(main)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        "--x",
    )
    code, out, err = run.end()
    assert [int(line) for line in out.split()] == list(ENDS.values())
    assert err == "maskline: no such thing\nmaskline: Redis is away\n"
    assert code == 0


def test_a_reader_that_goes_away_is_no_traceback(start):
    run = start("process.cli(lambda argv: [print('x' * 80) for _ in range(10000)] and 0)")
    run.process.stdout.close()
    with run.process.stderr as err:
        assert err.read() == ""
    assert run.process.wait() == 1


CHILD = """
index = sys.argv[sys.argv.index("--index") + 1]
async def main(stop):
    say("ready", index, os.getpid())
    await stop.wait()
    say("stopped", index)
    return 0
process.cli(lambda argv: process.run(main))
"""
PARENT = (
    "process.cli(lambda argv: process.supervise(['child', *argv[1:]], int(argv[0]), stop_timeout_ms=100))"
)


def stopped(out):
    return sorted(line.split()[1] for line in out.splitlines() if line.startswith("stopped"))


def test_children_are_numbered_and_stop_with_their_supervisor(start):
    run = start(PARENT, "3", child=CHILD)
    pids = run.children(3)
    assert sorted(pids) == [0, 1, 2]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1", "2"], "")


def test_a_signal_to_the_whole_group_and_the_one_passed_on_are_one_wish(start):
    run = start(PARENT, "2", child=CHILD)
    pids = run.children(2)
    for pid in (*pids.values(), run.process.pid):
        os.kill(pid, signal.SIGTERM)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1"], "")


def test_a_terminals_interrupt_reaches_children_only_from_their_supervisor(start):
    run = start(PARENT, "2", child=CHILD)
    pids = run.children(2)
    assert len({os.getpgid(pid) for pid in (*pids.values(), run.process.pid)}) == 3
    run.signal(signal.SIGINT)
    code, out, err = run.end()
    assert (code, stopped(out), err) == (0, ["0", "1"], "")


def test_a_child_that_dies_is_started_again_and_the_others_go_on(start):
    run = start(PARENT, "2", child=CHILD)
    before = run.children(2)
    os.kill(before[1], signal.SIGKILL)
    after = run.children(1)
    assert list(after) == [1]
    assert after[1] != before[1]
    run.signal(signal.SIGTERM)
    code, out, _ = run.end()
    assert (code, stopped(out)) == (0, ["0", "1"])


def test_wrong_configuration_in_a_child_stops_all_with_2(start):
    run = start(
        PARENT,
        "2",
        child=CHILD.replace(
            "async def main(stop):", "async def main(stop):\n    if index == '1': raise ConfigError('no')"
        ),
    )
    code, out, err = run.end()
    assert code == 2
    assert err == "maskline: no\n"
    # The other was stopped, in whatever state it was.
    assert stopped(out) in ([], ["0"])


def test_a_child_that_fails_at_the_stop_makes_the_code_1(start):
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


def test_a_child_that_does_not_stop_is_killed(start):
    run = start("process.GRACE_MS = 100\n" + PARENT, "1", child=IGNORING)
    run.children(1)
    run.signal(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 1
    assert "it has not stopped" in err


def test_a_second_signal_kills_the_children_at_once(start):
    run = start("process.SECOND_SIGNAL_AFTER_S = 0.0\n" + PARENT, "2", child=IGNORING)
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
    child = _Child(0, ["child"])
    child.started_at = time.monotonic()
    waits = [child._plan_restart() for _ in range(10)]
    assert waits[:3] == [RESTART_FIRST_S, RESTART_FIRST_S * 2, RESTART_FIRST_S * 4]
    assert waits[-1] == RESTART_MAX_S
    child.started_at = time.monotonic() - STEADY_S
    assert child._plan_restart() == RESTART_FIRST_S
    child.started_at = time.monotonic()
    assert child._plan_restart() == RESTART_FIRST_S * 2


@pytest.mark.parametrize("processes", [0, -1, PROCESSES_MAX + 1])
def test_a_senseless_number_of_processes_is_refused(processes):
    with pytest.raises(ConfigError, match="--processes"):
        supervise(["child"], processes)
