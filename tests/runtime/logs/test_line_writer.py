"""Real pipes, terminals, sockets and files, and readers that stop reading."""

import contextlib
import fcntl
import os
import pty
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from servers import wait_until

from maskline.runtime.logs import line_writer
from maskline.runtime.logs.line_writer import PIECE_MAX_BYTES, QUEUE_MAX_BYTES, QUEUE_MAX_LINES, LineWriter

QUICK_S = 5.0
"""A write that waits for a reader never returns; one that does not takes microseconds."""


def report(count):
    return b"lost %d\n" % count


class Stream:
    """A pipe, a terminal or a socket: its reader, and a writer to it."""

    def __init__(self, kind="pipe"):
        if kind == "socket":
            self.reader, writer = (end.detach() for end in socket.socketpair())
        else:
            self.reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
        os.set_blocking(self.reader, False)
        self.file = os.fdopen(writer, "w")
        self.writer = LineWriter(self.file, report)
        self.received = b""

    def read(self):
        """What has been read so far, more each time."""
        with contextlib.suppress(BlockingIOError):
            self.received += os.read(self.reader, 65_536).replace(b"\r\n", b"\n")
        return self.received

    def until(self, text):
        """The lines up to one that has this in it."""
        wait_until(lambda: text in self.read(), what=f"{text!r} to be read")
        return self.received.splitlines()

    def fill(self, count, size=200):
        """Log many lines. Fails where it takes long: somebody has waited."""
        began = time.monotonic()
        for number in range(count):
            self.writer.write(b"%d %s\n" % (number, b"x" * size))
        assert time.monotonic() - began < QUICK_S

    def close(self):
        os.close(self.reader)
        wait_until(lambda: not self.writer._thread_runs, what="the end of its thread")
        self.writer.close()
        self.file.close()


@pytest.fixture
def pipe():
    stream = Stream()
    yield stream
    stream.close()


@pytest.fixture(params=["pipe", "socket", "terminal", "another user's pipe", "the same on an old kernel"])
def stream(request, monkeypatch):
    with monkeypatch.context() as patch:
        if request.param not in ("pipe", "socket", "terminal"):
            patch.setattr(line_writer.os, "open", refuse(os.open, "/proc/"))
        if "old" in request.param:
            patch.delattr(line_writer.os, "RWF_NOWAIT")
        stream = Stream(request.param if request.param in ("socket", "terminal") else "pipe")
    yield stream
    stream.close()


def refuse(original, beginning):
    """As for a pipe of another user's, which this one may not open."""

    def opened(path, *arguments):
        if str(path).startswith(beginning):
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments)

    return opened


def numbers(lines):
    return [int(line.split()[0]) for line in lines]


def test_line_is_there_when_write_returns(stream):
    stream.writer.write(b"one\n")
    assert stream.until(b"one\n") == [b"one"]
    assert (stream.writer.waiting, stream.writer.dropped) == (0, 0)


def test_writer_never_waits_and_reports_dropped_lines_in_their_place(stream, monkeypatch):
    monkeypatch.setattr(line_writer, "QUEUE_MAX_LINES", 500)
    writer = stream.writer
    stream.fill(20_000)
    before = writer.dropped
    assert before
    assert 0 < writer.waiting <= 500
    lines = stream.until(b"lost %d\n" % before)
    assert numbers(lines[:-1]) == [*range(20_000 - before)]
    writer.write(b"again\n")
    assert stream.until(b"again\n")[-2:] == [b"lost %d" % before, b"again"]
    assert writer.dropped == before


@pytest.mark.parametrize("waiting", range(98, 103))
def test_report_and_next_line_follow_a_full_queue(pipe, monkeypatch, waiting):
    monkeypatch.setattr(line_writer, "QUEUE_MAX_LINES", waiting)
    assert line_writer.BATCH_LINES == 100
    os.write(pipe.file.fileno(), b"-" * 65_535 + b"\n")
    pipe.fill(waiting + 5)
    assert (pipe.writer.waiting, pipe.writer.dropped) == (waiting, 5)
    pipe.until(b"lost 5\n")
    pipe.writer.write(b"next\n")
    assert pipe.until(b"next\n")[-2:] == [b"lost 5", b"next"]
    assert pipe.writer.dropped == 5


def test_flags_that_others_share_are_left_alone(stream):
    descriptor = stream.file.fileno()
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    stream.fill(3_000)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) == before
    assert os.get_blocking(descriptor)


@pytest.mark.parametrize("size", [10, PIECE_MAX_BYTES - 20])
def test_lines_of_many_threads_come_whole_and_in_each_ones_order(pipe, size):
    def log(name):
        for number in range(200):
            pipe.writer.write(b"%d %s %s\n" % (number, name, b"x" * size))

    threads = [threading.Thread(target=log, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    wait_until(lambda: pipe.read().count(b"\n") == 600)
    for thread in threads:
        thread.join()
    rows = [line.split() for line in pipe.received.splitlines()]
    assert {len(row[2]) for row in rows} == {size}
    for name in (b"a", b"b", b"c"):
        assert [int(row[0]) for row in rows if row[1] == name] == [*range(200)]


def test_line_that_is_larger_than_the_pipe_comes_in_one_piece(pipe):
    pipe.writer.write(b"x" * 300_000 + b"\n")
    pipe.writer.write(b"next\n")
    assert [len(line) for line in pipe.until(b"next\n")] == [300_000, 4]


@pytest.mark.parametrize(("size", "most"), [(10, QUEUE_MAX_LINES), (100_000, QUEUE_MAX_BYTES // 100_010)])
def test_queue_is_bounded_in_lines_and_in_bytes(pipe, size, most):
    os.write(pipe.file.fileno(), b"-" * 65_536)
    pipe.fill(most + 100, size)
    assert most - 1 <= pipe.writer.waiting <= most + 1
    assert pipe.writer.waiting + pipe.writer.dropped == most + 100


def test_without_a_thread_the_next_line_writes_the_queue(pipe, monkeypatch):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(line_writer._thread, "start_new_thread", no_thread)
    os.write(pipe.file.fileno(), b"-" * 65_535 + b"\n")
    pipe.fill(50)
    assert pipe.writer.waiting == 50
    wait_until(lambda: len(pipe.read()) == 65_536)
    pipe.writer.write(b"0 last\n")
    assert numbers(pipe.until(b"last\n")[1:]) == [*range(50), 0]


def test_lines_lost_to_a_full_disk_are_counted():
    with Path("/dev/full").open("w") as full:
        writer = LineWriter(full, report)
        for _ in range(3):
            writer.write(b"lost\n")
    assert (writer.dropped, writer.waiting) == (3, 0)


def test_exit_waits_for_a_reader_that_reads_and_not_for_one_that_does_not(pipe):
    pipe.fill(5_000)
    began = time.monotonic()
    pipe.writer.finish()
    assert time.monotonic() - began < QUICK_S
    assert pipe.writer.waiting
    reading = threading.Thread(target=pipe.until, args=(b"\n4999 ",))
    reading.start()
    pipe.writer.finish()
    reading.join()
    assert not pipe.writer.waiting


# Processes

PRELUDE = """
import os, signal, sys, threading, time
from maskline.runtime.logs import *
from maskline.schemas.settings import Settings
configure_logging(Settings(log_format="json"))
log = get_logger("a")
"""


@contextlib.contextmanager
def run(body):
    """A process whose stderr nobody reads yet."""
    source = PRELUDE + textwrap.dedent(body)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", source], text=True, **pipes) as process:
        timer = threading.Timer(30, process.kill)
        timer.start()
        yield process
        timer.cancel()


ENDS = {
    "an end": ("", 0),
    "an error": ("raise ValueError", 1),
    "a complaint": (("from maskline.runtime.process.run import run_command\n"
                    "from maskline.schemas.errors import ConfigError\n"
                    "def main(argv): raise ConfigError('no')\nrun_command(main)"), 2),
    "what cannot be raised": ("class A:\n  def __del__(self): raise ValueError\nA()", 0),
    "a print": ("unblock_standard_streams()\nfor _ in range(10): print('x' * 10_000, file=sys.stderr)", 0),
    "a hang at the stop": (("import asyncio\n"
                            "from maskline.runtime.process import run as process\nprocess.GRACE_MS = 0\n"
                           "async def main(stop):\n  os.kill(os.getpid(), signal.SIGTERM)\n  time.sleep(60)\n"
                           "process.run(main, stop_timeout_ms=100)"), 1),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_exit_never_waits_for_stderr(end):
    body, code = ENDS[end]
    flood = "for number in range(3_000): log.info('x' * 100)\n"
    with run(flood + body) as process:
        assert process.wait() == code


def test_what_is_printed_comes_in_order_with_what_is_logged_and_without_an_end_of_line():
    body = """
        unblock_standard_streams()
        log.info("one")
        print("two", file=sys.stderr)
        log.info("three")
        print("four", end="", file=sys.stderr)
        print("out", end="", flush=True)
        assert (sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty()) == (1, 2, False)
        sys.stdout.buffer.write(b" bytes")
        """
    with run(body) as process:
        out, err = process.communicate()
    assert out == "out bytes"
    one, two, three, four = err.splitlines()
    assert ("one" in one, two, "three" in three, four) == (True, "two", True, "four")
    assert process.returncode == 0


def test_signal_handler_logs_in_the_midst_of_lines():
    body = """
        signal.signal(signal.SIGALRM, lambda *_: log.info("signal"))
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        for number in range(2_000):
            log.info("line", number=number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        """
    with run(body) as process:
        lines = process.stderr.read().splitlines()
    assert all(line.startswith("{") and line.endswith("}") for line in lines)
    assert len([line for line in lines if '"line"' in line]) == 2_000
    assert len(lines) > 2_000


def test_forked_child_does_not_write_the_queue_of_its_parent():
    body = """
        for number in range(1_000):
            log.info("x" * 100, number=number)
        if os.fork() == 0:
            log.info("child")
            os._exit(0)
        os.wait()
        print("forked", flush=True)
        """
    with run(body) as process:
        assert process.stdout.readline() == "forked\n"
        lines = [line for line in process.stderr.read().splitlines() if "number" in line]
    assert len(lines) == len(set(lines)) == 1_000


def test_line_logged_before_a_kill_is_written():
    with run("log.info('last words'); os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert "last words" in process.stderr.read()
