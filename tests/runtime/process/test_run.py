"""One process: its stop, its exit code, and how a command ends."""

import signal
import time

import pytest

MAIN = """
async def main(stop):
    say("ready", type(asyncio.get_running_loop()).__mro__[1].__module__, os.getpid())
    await stop.wait()
    say("stopped")
    return 5
sys.exit(process.run(main))
"""


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_main_and_its_code_is_the_exit_code(start, loop, signum):
    run = start(MAIN, loop)
    assert run.line()[1] == ("uvloop" if loop == "uvloop" else "asyncio.selector_events")
    run.signal(signum)
    assert run.end() == (5, "stopped\n", "")


def test_signals_close_together_are_one_request(start):
    run = start(
        """
        signals.SECOND_SIGNAL_AFTER_S = 60.0
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
def test_second_signal_ends_even_a_blocked_loop(start, loop, hang):
    run = start(
        f"""
        signals.SECOND_SIGNAL_AFTER_S = 0.0
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
def test_hanging_thread_does_not_keep_the_process(start, where):
    run = start(
        f"""
        stop_deadline.THREADS_GRACE_S = 0.1
        def hang():
            say("ready")
            threading.Event().wait()
        async def main(stop):
            task = asyncio.ensure_future({where})
            await stop.wait()
            return 3
        process.run_command(lambda argv: process.run(main))
        """
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 3


def test_error_in_main_is_raised(start):
    run = start(
        """
        async def main(stop):
            raise ConfigError("MASKLINE_PORT is\\n taken")
        process.run_command(lambda argv: process.run(main))
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
                process.run_command(main)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        "--x",
    )
    code, out, err = run.end()
    assert [int(line) for line in out.split()] == list(ENDS.values())
    assert err == "maskline: no such thing\nmaskline: Redis is away\n"
    assert code == 0


def test_closed_stdout_shows_no_traceback(start):
    run = start("process.run_command(lambda argv: [print('x' * 80) for _ in range(10000)] and 0)")
    run.process.stdout.close()
    with run.process.stderr as err:
        assert err.read() == ""
    assert run.process.wait() == 1
