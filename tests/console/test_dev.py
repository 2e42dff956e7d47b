"""`maskline dev` as a newcomer starts it: real processes in an empty directory."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest
from servers import free_port, wait_until

BIN = Path(sys.executable).parent
LINE = re.compile(
    r"\d\d:\d\d:\d\d\.\d{3}  ([0-9a-f]{8})  (rec|   ) +(\d+|-)  (\w+) +(in order|after gap|late|unsequenced)"
    r"(?: +arrived #(\d+))?(?:  missing ([\d, ]+))?"
)


class Dev:
    def __init__(self, directory, *argv, **environ):
        self.log = directory / "dev.out"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [BIN / "maskline", "dev", *argv],
                cwd=directory,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"PATH": f"{BIN}:{os.environ['PATH']}", **environ},
            )

    @property
    def output(self):
        return self.log.read_text()

    def line(self, beginning):
        return next((line for line in self.output.splitlines() if line.strip().startswith(beginning)), None)

    def until_ready(self):
        wait_until(
            lambda: self.process.poll() is not None or self.line("maskline simulate"), within_s=60, what="dev"
        )
        assert self.process.poll() is None, self.output
        return self

    def wait(self):
        return self.process.wait(timeout=60)


@pytest.fixture
def dev(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*argv, directory=tmp_path, **environ):
            directory.mkdir(exist_ok=True)
            ports = {"MASKLINE_PORT": str(free_port()), **environ}
            running = Dev(directory, *argv, **ports)
            stack.callback(running.process.wait)
            stack.callback(running.process.kill)
            return running

        yield start


def no_server_left(directory):
    # A server that ended by itself takes its socket away.
    return not (directory / ".maskline" / "valkey" / "server.sock").exists()


def test_demo_handles_every_event_once_in_order(dev, tmp_path):
    demo = dev("--demo", "--exit", MASKLINE_GAP_TIMEOUT_MS="2000")
    assert demo.wait() == 0, demo.output
    output = demo.output
    events = [LINE.match(line).groups() for line in output.splitlines() if LINE.match(line)]
    assert len({session for session, *_ in events}) == 30
    assert len(events) > 300
    assert any(arrived and number.isdigit() for _, _, number, _, _, arrived, _ in events)
    latest = {}
    places = {}
    given_up = set()
    for session, lane, number, _name, order, arrived, missing in events:
        assert (order == "after gap") == bool(missing)
        given_up |= {(session, lane, missed) for missed in (missing or "").split(", ")}
        if order == "late":
            # Nothing but a machine that stood still for longer than the gap timeout makes an event late.
            assert (session, lane, number) in given_up
        elif number != "-":
            assert int(number) > latest.get((session, lane), -1)
            latest[session, lane] = int(number)
        places.setdefault(session, []).append(int(arrived))
    # They had been shuffled on the way.
    assert any(sorted(numbers) != numbers for numbers in places.values())
    assert "every event reached the handler once, each session in order" in output
    assert re.search(r"[1-9]\d* duplicates dropped", output)
    assert "\x1b" not in output
    assert not re.search(r"555 ?01\d\d|7700 ?900", re.sub(r"(?m)^ *curl .*$", "", output))
    assert no_server_left(tmp_path)


def test_printed_command_lines_work_from_a_second_terminal(dev, tmp_path):
    """simulate, curl, status and dead, as pasted from what dev prints; then Ctrl-C."""
    port = free_port()
    running = dev(MASKLINE_PORT=str(port)).until_ready()
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}"}

    def run(line, code=0):
        done = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    simulate = running.line("maskline simulate").strip()
    assert "--url" not in simulate  # commands in this directory find the port by themselves
    report = msgspec.json.decode(
        run(f"{simulate} --sessions 5 --rate 0 --losses 0 --seed 3 --json --expect expected.jsonl")
    )
    expected = [msgspec.json.decode(line) for line in (tmp_path / "expected.jsonl").read_bytes().splitlines()]
    count = sum(len(e["status"]) + len(e["recording"]) + len(e["unsequenced"]) for e in expected)
    assert report["answered"] == {"200": report["sent"]}
    assert report["sent"] == count + report["duplicates"]

    def shown():
        return [m for m in map(LINE.match, running.output.splitlines()) if m]

    wait_until(lambda: len(shown()) == count, within_s=60, what="all events in the view")
    for session in expected:
        seen = [m.groups() for m in shown() if m[1] == session["session_uuid"][:8]]
        for lane, word in (("status", "   "), ("recording", "rec")):
            assert [
                (name, int(number), order)
                for _, w, number, name, order, *_ in seen
                if w == word and number != "-"
            ] == [
                (e["event_name"], e["sequence_number"], e["order"].replace("_", " ")) for e in session[lane]
            ]

    curl = shlex.split(running.line("curl").strip())
    headers = dict(curl[i + 1].split(": ") for i, word in enumerate(curl) if word == "-H")
    body = curl[curl.index("-d") + 1]
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    request = urllib.request.Request(curl[2], body.encode(), headers)  # noqa: S310 - our own http URL
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - the same
        assert answer.status == 200
    wait_until(lambda: len(shown()) == count + 1, what="the event sent by hand")

    assert "healthy" in run("maskline status")
    status = msgspec.json.decode(run("maskline status --json"))
    assert status["healthy"]
    assert msgspec.json.decode(run("maskline dead list --json")) == []
    run("maskline dead show 0-1-1", code=1)

    second = subprocess.run(
        [BIN / "maskline", "dev"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert "another maskline dev runs in this directory" in second.stderr

    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 0
    assert "Traceback" not in running.output
    assert no_server_left(tmp_path)


def test_ctrl_c_during_the_demo_stops_cleanly(dev, tmp_path):
    running = dev("--demo").until_ready()
    wait_until(lambda: LINE.search(running.output), what="the first event")
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 0
    assert "Traceback" not in running.output
    assert no_server_left(tmp_path)


def test_unread_output_does_not_block_dev(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4_096)
    os.set_blocking(writer, True)
    port, admin_port = free_port(), free_port()
    environ = {"MASKLINE_PORT": str(port), "MASKLINE_ADMIN_PORT": str(admin_port)}
    dev = subprocess.Popen(
        [BIN / "maskline", "dev", "--demo"], cwd=tmp_path, stdout=writer, stderr=writer, stdin=subprocess.DEVNULL,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", **environ},
    )  # fmt: skip
    os.close(writer)

    def taken():
        assert dev.poll() is None
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{admin_port}/metrics"
            with urllib.request.urlopen(url, timeout=60) as answer:
                found = re.search(rb'requests_total\{reason="taken",status="200"\} (\S+)', answer.read())
                return found and float(found[1])
        return 0

    try:
        wait_until(lambda: taken() > 300, within_s=60, what="the demo's callbacks to be taken")
        dev.send_signal(signal.SIGTERM)
        assert dev.wait(timeout=60) == 0
    finally:
        dev.kill()
        dev.wait()
        os.close(reader)
    assert no_server_left(tmp_path)


def test_closed_output_pipe_ends_dev(tmp_path):
    command = [BIN / "maskline", "dev", "--demo"]
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "MASKLINE_PORT": str(free_port())}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environ) as piped:
        piped.stdout.close()
        assert piped.wait(timeout=60) == 1


def test_default_port_that_is_taken_is_replaced_by_the_next_free_one(dev):
    held = []
    try:
        for port in (8080, 9090, 9091):
            taken = socket.socket()
            held.append(taken)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # somebody else's already: as good
                taken.bind(("0.0.0.0", port))  # noqa: S104 - as ingest does
                taken.listen()
        running = dev(MASKLINE_PORT="").until_ready()
        assert re.search(r"MASKLINE_PORT: 8080 is taken, so it is \d+", running.output)
        assert "the admin port of ingest: 9090 is taken" in running.output
        assert ":8080/" not in running.output
    finally:
        for taken in held:
            taken.close()


def test_set_port_that_is_taken_is_an_error(dev):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = dev(MASKLINE_PORT=str(port), MASKLINE_HOST="127.0.0.1")
        assert running.wait() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in running.output
    assert "Traceback" not in running.output


def test_dev_uses_the_server_and_handlers_that_are_set(dev, tmp_path, redis_server, namespace):
    (tmp_path / "mine.py").write_text(
        "from maskline.events import SessionTimeout\nfrom maskline import on\n\n"
        "@on(SessionTimeout)\nasync def mine(event, ctx):\n    ctx.log.info('handled by mine')\n"
    )
    running = dev(
        "--demo",
        "--exit",
        MASKLINE_REDIS_URL=redis_server.url,
        MASKLINE_NAMESPACE=namespace,
        MASKLINE_HANDLERS="mine.py",
        MASKLINE_AUTH_TOKENS="MAOWN:own-token",
        MASKLINE_GAP_TIMEOUT_MS="1500",
    )
    assert running.wait() == 0, running.output
    assert "handled by mine" in running.output
    assert "account MAOWN" in running.output
    assert "own-token" not in running.output
    assert not (tmp_path / ".maskline" / "valkey").exists()


def test_dying_server_ends_dev(dev, tmp_path):
    # Without its server a worker hands nothing back; it need not try for long.
    running = dev(MASKLINE_STOP_TIMEOUT_MS="200").until_ready()
    (server,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in _read(path) and b"server.sock" in _read(path)
    )
    os.kill(server, signal.SIGKILL)
    assert running.wait() == 1
    assert "the embedded server has ended" in running.output


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_dev_exits_2_if_the_set_redis_is_unreachable(dev):
    running = dev(MASKLINE_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert running.wait() == 2
    assert "MASKLINE_REDIS_URL" in running.output
    assert "Traceback" not in running.output
