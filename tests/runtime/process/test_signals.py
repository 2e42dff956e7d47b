"""SIGTERM and SIGINT stop a process, whatever its own code has done with them."""

import json
import signal

import pytest

HOSTILE = """
import _signal, contextlib, resource

def theirs(*_):
    say("theirs")

def leave(*_):
    say("theirs")
    sys.exit(3)

async def main(stop):
    loop = asyncio.get_running_loop()
    {take}
    say("ready")
    await stop.wait()
    await asyncio.sleep(0.05)
    say("stopped")
    return 5
process.run_command(lambda argv: process.run(main, stop_timeout_ms=5_000))
"""

TAKES = {
    "a handler": "signal.signal(signum, theirs)",
    "a handler under another name": "from signal import signal as take; take(signum, theirs)",
    "a handler that ends the process": "signal.signal(signum, leave)",
    "a handler of the loop": "loop.add_signal_handler(signum, theirs)",
    "a handler of the loop that ends the process": "loop.add_signal_handler(signum, leave)",
    "a handler that calls what was there": "before = signal.signal(signum, lambda *a: (theirs(), before in (0, "
    "signal.default_int_handler) or before(*a)))",
    "a handler of the loop that stops it": "loop.add_signal_handler(signum, lambda: (theirs(), loop.stop()))",
}
QUIET_TAKES = {
    "ignored": "signal.signal(signum, signal.SIG_IGN)",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [signum])",
    "no wake-up descriptor": "signal.set_wakeup_fd(-1)",
    "put back to the default": "signal.signal(signum, signal.SIG_DFL)",
}


@pytest.mark.parametrize(
    ("take", "signum", "loop"),
    [
        *((take, signal.SIGTERM, "uvloop") for take in TAKES),
        *((take, signal.SIGTERM, "no-uvloop") for take in TAKES if "loop" in take),
        ("a handler", signal.SIGINT, "no-uvloop"),
        ("a handler of the loop", signal.SIGINT, "uvloop"),
    ],
)
def test_signal_that_was_taken_stops_the_process_and_reaches_both(start, take, signum, loop):
    run = start(HOSTILE.format(take=TAKES[take].replace("signum", str(int(signum)))), loop)
    assert run.line() == ["ready"]
    run.signal(signum)
    code, out, err = run.end()
    assert (code, sorted(out.split())) == (5, ["stopped", "theirs"]), err
    said = [json.loads(line) for line in err.splitlines()]
    taken = [line for line in said if line["event"] == "signal taken by other code"]
    assert [line["signal"] for line in taken] == [signum.name], err
    assert "parent.py" in taken[0]["by"] or "oop" in taken[0]["by"]


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize("take", QUIET_TAKES)
def test_signal_that_was_ignored_or_blocked_stops_the_process(start, take, loop):
    run = start(HOSTILE.format(take=QUIET_TAKES[take].replace("signum", "15")), loop)
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, out) == (5, "stopped\n"), err
    assert (("signal taken" in err) or ("signal blocked" in err)) == (take in ("ignored", "blocked"))


def test_handler_set_past_the_signal_module_is_found_and_replaced(start):
    run = start(HOSTILE.format(take="_signal.signal(15, theirs)"))
    assert run.line() == ["ready"]
    with run.process.stderr as err:
        said = json.loads(err.readline())
        assert said["event"] == "signal taken by other code"
        assert "parent.py" in said["by"]
        run.signal(signal.SIGTERM)
        assert run.line() == ["theirs"]
        assert run.line() == ["stopped"]
    assert run.process.wait(10) == 5


@pytest.mark.parametrize(
    "take",
    ["__import__('ctypes').CDLL(None).signal(15, 1)", "__import__('faulthandler').register(15, chain=False)"],
    ids=["ignored", "faulthandler"],
)
def test_signal_that_was_taken_in_c_stops_the_process(start, take):
    run = start(HOSTILE.format(take=f"{take}; await asyncio.sleep(2 * process.HEARTBEAT_INTERVAL_S)"))
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, out) == (5, "stopped\n"), err


def test_signal_before_the_loop_turns_ends_the_process_at_once(start):
    run = start(
        """
        def main(stop):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("ready")
            time.sleep(60)
        process.run_command(lambda argv: process.run(main))
        """
    )
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 0


@pytest.mark.parametrize("threads", ["", "await asyncio.to_thread(time.sleep, 0)"])
def test_stop_needs_no_thread(start, threads):
    take = f"""
    {threads}
    if os.getuid() == 0:  # whom no limit binds
        os.setuid(65_534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=print).start()
        say("there are threads")
"""
    run = start(HOSTILE.format(take=take))
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, out) == (5, "stopped\n"), err


def test_what_hangs_at_the_stop_is_ended_without_a_thread(start):
    take = """
    if os.getuid() == 0:
        os.setuid(65_534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    process.GRACE_MS, stop_deadline.DUMP_S = 0, 0.1
    say("ready")
    time.sleep(60)
"""
    run = start(HOSTILE.format(take=take).replace("5_000", "100"))
    assert run.line() == ["ready"]
    run.signal(signal.SIGTERM)
    assert run.end()[0] == -signal.SIGALRM
