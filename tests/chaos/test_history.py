"""What is written down comes back, from several processes and after a kill in the middle of a line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from history import (
    HANDLERS_FILE,
    RUNNER_FILE,
    Answer,
    Began,
    DeadLetter,
    Discarded,
    Ended,
    Exit,
    Fault,
    HandlerTerms,
    Leftover,
    Operated,
    Recovery,
    Rerun,
    Said,
    Tail,
    Terms,
    Waiting,
    Writer,
    read,
)
from servers import wait_until

FACTS = [
    Terms({"every": HandlerTerms(attempts=3), "ends": HandlerTerms(["SessionTimeout"], skips=True)}, 1.5, 16),
    Answer("0.1", "s", 3, "SessionTimeout", "ingest-0", 1.25, 1.5, 200),
    Answer("0.2", "s", None, "SessionTimeout", "ingest-0", 1.25, 1.5, 0),
    Began("7-0", 7, "every", "0.1", "s", 3, "SessionTimeout", "after_gap", [1, 2], 0, 1, "s:3:ff", 9, 1.75),
    Ended("7-0", "done", 1.875),
    Fault("kill", "worker-0", 7, 2.0, 3.0),
    Exit("worker-0", 7, -9, "kill", 2.0),
    Recovery("takeover", "worker-0", 2.0, 1.5),
    DeadLetter("0.2", None, "late"),
    Waiting("0.3", "every", True),
    Discarded("0.3", "ends", 2.5),
    Rerun("s", 2.5),
    Operated("dead replay --all", 2.5, 3.5, 1, "Redis is away"),
    Said("ingest-0", 3, 2.5, True),
    Leftover(0, 0, None),
]

WRITES_FOR_EVER = """
import sys
from pathlib import Path
from history import Ended, Writer
writer = Writer(Path(sys.argv[1]))
count = 0
while True:
    writer.write(Ended(f"{sys.argv[2]}-{count}", "done", float(count)))
    count += 1
"""


def test_every_kind_of_fact_comes_back(tmp_path: Path):
    writer = Writer(tmp_path / RUNNER_FILE)
    for fact in FACTS:
        writer.write(fact)
    writer.close()
    history = read(tmp_path)
    assert list(history.facts()) == FACTS
    assert history.terms == FACTS[0]
    assert history.torn == 0


def test_both_files_are_read_and_none_need_be_there(tmp_path: Path):
    with pytest.raises(LookupError):
        _ = read(tmp_path).terms
    for name, fact in ((RUNNER_FILE, FACTS[1]), (HANDLERS_FILE, FACTS[4])):
        writer = Writer(tmp_path / name)
        writer.write(fact)
        writer.close()
    assert list(read(tmp_path).facts()) == [FACTS[1], FACTS[4]]


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path):
    path = tmp_path / HANDLERS_FILE
    writer = Writer(path)
    writer.write(FACTS[3])
    os.truncate(path, path.stat().st_size - 5)
    writer.write(FACTS[4])
    writer.close()
    history = read(tmp_path)
    assert list(history.facts()) == [FACTS[4]]
    assert history.torn == 1


def test_a_tail_goes_on_where_it_was_and_waits_for_the_end_of_a_line(tmp_path: Path):
    path = tmp_path / "tail.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    writer = Writer(path)
    writer.write(FACTS[1])
    assert tail.read() == [FACTS[1]]
    line = b'\n{"type":"ended","call":"1-1","outcome":"done","at":2.5}\n'
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert tail.read() == []
        file.write(line[20:])
    assert tail.read() == [Ended("1-1", "done", 2.5)]
    assert tail.torn == 0
    writer.close()


def test_processes_that_write_at_once_and_are_killed_mix_no_lines(tmp_path: Path):
    path = tmp_path / HANDLERS_FILE
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, str(path), str(number)], env=environment)
        for number in range(3)
    ]
    try:
        wait_until(
            lambda: path.exists() and all(b'"%d-2000"' % number in path.read_bytes() for number in range(3)),
            within_s=60,
        )
    finally:
        for process in writers:
            process.send_signal(signal.SIGKILL)
            process.wait()
    history = read(tmp_path)
    assert history.torn <= len(writers)
    for number in range(3):
        mine = [ended for ended in history.of(Ended) if ended.call.startswith(f"{number}-")]
        assert [ended.at for ended in mine] == [float(count) for count in range(len(mine))]
