"""`maskline dev --reload`, a real one, with traffic from `maskline simulate` while its handler module is saved.

RELOADS=100 SEED=7 adds a hundred saves, at any moment, some of them with mistakes.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest
from servers import free_port, wait_until

from maskline.console.dev import main
from maskline.console.reload.reloader import Reloader
from maskline.schemas.errors import ConfigError

BIN = Path(sys.executable).parent
RELOADS = int(os.environ.get("RELOADS", "0"))
SEED = int(os.environ.get("SEED", "1"))

MODULE = """\
import asyncio
from maskline import Context, on, resource
from maskline.events import Event, RecordingEvent
from prometheus_client import Counter
from prices import VERSION

HANDLED = Counter("fares_handled", "Fails at its second registration.")


def note(*words):
    with open("seen.txt", "a") as seen:
        print(*words, file=seen)


@resource
async def store():
    {opening}
    note("open", VERSION)
    yield VERSION
    note("close", VERSION)


@on.every
async def settle(event: Event, ctx: Context, store) -> None:
    HANDLED.inc()
    await asyncio.sleep(0.05)  # some are always under way
    lane = "recording" if isinstance(event, RecordingEvent) else "status"
    note("handled", store, ctx.idempotency_key, ctx.session_uuid, lane, ctx.sequence_number, ctx.order)
"""


class Fares:
    """A directory with a handler module and one that it imports, and a `maskline dev --reload` in it."""

    def __init__(self, directory):
        self.directory = directory
        self.save("my_fares.py", MODULE.format(opening="pass"))
        self.save("prices.py", "VERSION = 1\n")
        self.port = free_port()
        with (directory / "dev.out").open("wb") as out:
            self.process = subprocess.Popen(
                [BIN / "maskline", "dev", "--reload"],
                cwd=directory,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "MASKLINE_PORT": str(self.port),
                    "MASKLINE_HANDLERS": "my_fares",
                    "MASKLINE_LOG_LEVEL": "warning",
                },
            )

    def save(self, name, text):
        """As many editors do: written aside, then renamed."""
        aside = self.directory / f".{name}.swp"
        aside.write_text(text)
        aside.rename(self.directory / name)

    def simulate(self, *options):
        url = f"http://127.0.0.1:{self.port}/callbacks"
        return subprocess.Popen(
            [BIN / "maskline", "simulate", "--url", url, "--json", "--losses", "0", *options],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            env={"PATH": f"{BIN}:{os.environ['PATH']}"},
        )

    def metrics(self):
        (where,) = re.findall(r"^worker .* http://(\S+)/metrics$", self.output, re.MULTILINE)
        with urllib.request.urlopen(f"http://{where}/metrics") as page:
            return page.read().decode()

    @property
    def output(self):
        return (self.directory / "dev.out").read_text()

    def said(self, words):
        return [line for line in self.output.splitlines() if line.startswith(words)]

    def until_said(self, words, count=1):
        wait_until(
            lambda: self.process.poll() is not None or len(self.said(words)) >= count,
            within_s=60,
            what=f"{words!r} in {self.output}",
        )
        assert self.process.poll() is None, self.output
        return self.said(words)[-1]

    @property
    def seen(self):
        path = self.directory / "seen.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def until_handled_by(self, version, more_than=0):
        def count():
            return sum(words[:2] == ["handled", str(version)] for words in self.seen)

        wait_until(lambda: count() > more_than, within_s=60, what=f"events handled by {version}")
        return count()


@pytest.fixture
def fares(tmp_path):
    running = Fares(tmp_path)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_saves_under_traffic_lose_no_event_and_handle_none_twice(fares):
    fares.until_said("Play sessions")
    sessions = 22 + 2 * RELOADS
    simulate = fares.simulate("--sessions", f"{sessions}", "--rate", "90", "--seed", "5")
    fares.until_handled_by(1)

    # A module that the handler module imports, of the same size within the same second.
    fares.save("prices.py", "VERSION = 2\n")
    assert "reloaded prices.py in" in fares.until_said("reloaded")
    fares.until_handled_by(2)

    # Mistakes: the version before goes on.
    fares.save("my_fares.py", "def settle(:\n")
    line = fares.until_said("not reloaded")
    assert line.startswith("not reloaded, the version before goes on: my_fares.py:1: ")
    assert "SyntaxError" in line
    fares.save("my_fares.py", MODULE.format(opening='raise OSError("no such database")'))
    assert "the resource store could not be opened: OSError: no such database" in fares.until_said(
        "not reloaded", 2
    )
    fares.until_handled_by(2, more_than=fares.until_handled_by(2))
    assert re.search(r"^fares_handled_total [1-9]", fares.metrics(), re.MULTILINE)  # that version's own

    rng = random.Random(SEED)
    for more in range(RELOADS):
        fares.save("prices.py", rng.choice(("VERSION = (\n", f"VERSION = {100 + more}\n")))
        time.sleep(rng.random() / 2)
    reloads, mistakes = len(fares.said("reloaded")), len(fares.said("not reloaded"))

    # A file that is half there, and complete at once.
    (fares.directory / "my_fares.py").write_text("")
    fares.save("prices.py", "VERSION = 3\n")
    fares.save("my_fares.py", MODULE.format(opening="pass"))
    fares.until_said("reloaded", reloads + 1)
    fares.until_handled_by(3)
    assert len(fares.said("not reloaded")) == mistakes or RELOADS

    report = msgspec.json.decode(simulate.communicate(timeout=60)[0])
    assert report["answered"] == {"200": report["sent"]}
    events = report["sent"] - report["duplicates"]
    wait_until(lambda: len([w for w in fares.seen if w[0] == "handled"]) >= events, within_s=60, what="all")

    # Ctrl-C in the middle of the next one.
    fares.save("prices.py", "VERSION = 4\n")
    wait_until(lambda: ["open", "4"] in fares.seen, within_s=60, what="the next version's resource")
    fares.process.send_signal(signal.SIGINT)
    assert fares.process.wait(timeout=60) == 0, fares.output

    seen = fares.seen
    handled = [words[2:] for words in seen if words[0] == "handled"]
    keys = [key for key, *_ in handled]
    assert len(keys) == len(set(keys)) == events, fares.output
    last = [version for word, version, *_ in seen if word == "handled"][-1]
    assert last == "3"
    for version in "1", "2", "3":
        of_version = [word for word, by, *_ in seen if by == version]
        # A resource is open before anything uses it, and closed after the last attempt that did.
        assert of_version[0] == "open"
        assert of_version[-1] == "close"
        assert of_version.count("close") == 1
    numbers = {}
    for _, session, lane, number, order in handled:
        if order == "in_order":
            assert int(number) > numbers.get((session, lane), -1)
            numbers[session, lane] = int(number)
    assert "Traceback" not in fares.output


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"dev: --reload needs an extra: pip install 'maskline\[reload\]'"):
        main(["--reload"])


def test_without_a_module_of_the_users_there_is_nothing_to_reload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--reload has nothing to watch"):
        Reloader(["maskline.handlers.log"], print).load(lambda: None)
