"""Projects of a user of maskline, whose own modules bear names that maskline has inside, and what he runs in them.

`newcomer.py` (`make wheel`) takes every step with a wheel that is installed in an empty environment, `test_wheel.py`
takes some of them with one that is only unpacked.
"""

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from servers import RedisServer, free_port, wait_until

PATIENCE_S = 60.0
"""For what is sure to come: a loaded machine must not fail a step."""

INSIDE = ("console", "handlers", "ingest", "runtime", "schemas", "worker")
"""Names that maskline has inside, and that anybody may use for modules of his own."""

PROJECT = {
    "schemas/__init__.py": "CURRENCY = 'EUR'\n",
    "worker.py": "RATE = 2\n",
    "redis.py": "raise SystemExit('redis.py of the project was imported')\n",
    "handlers/__init__.py": "",
    "handlers/fares.py": """
import os

from schemas import CURRENCY
from worker import RATE

from maskline import Context, on
from maskline.events import Event


@on.every
async def book(event: Event, ctx: Context) -> None:
    if event.session_uuid == "deadly":
        os._exit(3)
    with open(os.environ["BOOKED"], "a") as file:
        file.write(f"{event.session_uuid} {event.sequence_number} {RATE} {CURRENCY}\\n")
""",
}
"""A folder with handlers: maskline must neither import its modules nor be in their way, nor import its redis.py."""

PYTEST_PROJECT = {
    "schemas.py": "CURRENCY = 'EUR'\n",
    "fares.py": """
from schemas import CURRENCY

from maskline import Context, on
from maskline.events import SessionFirstPartyRinging


@on(SessionFirstPartyRinging)
async def book(event: SessionFirstPartyRinging, ctx: Context) -> None:
    assert CURRENCY == "EUR"
""",
    "test_fares.py": """
import asyncio

import schemas
from maskline.testing import Harness, callback


def test_callbacks_are_handled_in_order() -> None:
    async def feed() -> list[int]:
        async with Harness("fares") as harness:
            await harness.feed(*(callback("SessionFirstPartyRinging", sequence_number=n) for n in (2, 1)))
        return [call.event.sequence_number for call in harness.calls]

    assert asyncio.run(feed()) == [1, 2]
    assert schemas.CURRENCY == "EUR"
""",
}

APPLICATION = {f"{name}.py": f"OWNER = 'the application, {name}'\n" for name in INSIDE} | {
    "unrelated.py": f"""
import importlib, logging, signal, sys, threading, warnings

def state():
    return (
        list(sys.path), list(sys.meta_path), [signal.getsignal(s) for s in (1, 2, 3, 15)], signal.getitimer(0),
        sys.excepthook, sys.unraisablehook, threading.excepthook, threading.active_count(), list(warnings.filters),
        logging.getLogger().handlers, logging.getLogger().level, sys.getswitchinterval(),
    )

before = state()
import maskline
assert state() == before, "import maskline"
import maskline.events
from maskline import Context, Reject, Retry, on, resource
assert state() == before, "the public names"
for name in {INSIDE!r}:
    assert importlib.import_module(name).OWNER == f"the application, {{name}}", name
print("untouched")
""",
}
"""Modules of another application, in the same environment as maskline."""


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Write the files, by their paths below the directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


class Installation(NamedTuple):
    """An interpreter that finds maskline, and the variables that it needs for that."""

    python: Path
    environment: Mapping[str, str]

    def variables(self, settings: Mapping[str, object]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
        inherited["PATH"] = f"{self.python.parent}:{inherited.get('PATH', '')}"
        return inherited | self.environment | {name: str(value) for name, value in settings.items()}

    def run(
        self,
        *arguments: str,
        directory: Path,
        exit_code: int = 0,
        settings: Mapping[str, object] | None = None,
    ) -> str:
        """Run the interpreter with the arguments; what it wrote. Fails the step on another exit code."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=directory,
            env=self.variables(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=4 * PATIENCE_S,
        )
        assert done.returncode == exit_code, f"{arguments} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def started(
        self, *arguments: str, directory: Path, settings: Mapping[str, object]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process that must stop with 0 on SIGTERM; its output in a file beside the directory."""
        log = directory.parent / f"{'-'.join(arguments).replace('/', '-')}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.python, *arguments],
                cwd=directory,
                env=self.variables(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
            assert process.poll() is None, f"{arguments} ended early:\n{log.read_text()}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, f"{arguments} did not stop well:\n{log.read_text()}"
        except AssertionError as error:
            error.add_note(log.read_text())
            raise
        finally:
            process.kill()
            process.wait()


class Newcomer:
    """Ingest and workers on a server, in the folder of a project with handlers of its own."""

    def __init__(
        self, installation: Installation, directory: Path, server: RedisServer, namespace: str
    ) -> None:
        self.installation = installation
        self.project = write(directory / "project", PROJECT)
        self.booked = directory / "booked"
        self.port = free_port()
        self.settings: dict[str, object] = {
            "MASKLINE_REDIS_URL": server.url, "MASKLINE_NAMESPACE": namespace, "MASKLINE_PARTITIONS": 8,
            "MASKLINE_HOST": "127.0.0.1", "MASKLINE_PORT": self.port, "MASKLINE_VERIFY": "off",
            "MASKLINE_SPOOL_DIR": directory / "spool", "MASKLINE_ADMIN_PORT": 0, "MASKLINE_LEASE_TTL_MS": 1_000,
            "MASKLINE_HANDLERS": "handlers.fares", "MASKLINE_LOG_FORMAT": "json", "BOOKED": self.booked,
        }  # fmt: skip

    def run(self, *arguments: str, exit_code: int = 0) -> str:
        return self.installation.run(
            *arguments, directory=self.project, settings=self.settings, exit_code=exit_code
        )

    def started(self, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return self.installation.started(*arguments, directory=self.project, settings=self.settings)

    def post(self, session: str, number: int) -> None:
        """Send one callback; waits until ingest takes it with 200."""
        pairs = {"EventName": "SessionFirstPartyRinging", "SessionUUID": session, "SequenceNumber": number}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/callbacks", data=urlencode(pairs).encode()
        )

        def status() -> int:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:  # noqa: S310 - our own URL
                    return int(response.status)
            except OSError:  # ingest does not listen yet
                return 0

        assert wait_until(status, within_s=PATIENCE_S, what="ingest to answer") == 200

    def until_booked(self, session: str, numbers: list[int]) -> None:
        """Wait until the project's handler has booked the session's events, and see that it did so in order."""

        def lines() -> list[str]:
            text = self.booked.read_text() if self.booked.exists() else ""
            return [line for line in text.splitlines() if line.startswith(f"{session} ")]

        wait_until(lambda: len(lines()) >= len(numbers), within_s=PATIENCE_S, what=f"{session} to be booked")
        assert lines() == [f"{session} {number} 2 EUR" for number in numbers]

    def until_crash_is_dead_letter(self) -> None:
        """Send an event whose handler kills its process, and wait until it is a dead letter for that reason."""
        self.post("deadly", 1)

        def letters() -> list[dict[str, Any]]:
            found = json.loads(self.run("-m", "maskline", "dead", "list", "--json"))
            return [letter for letter in found if letter["session_uuid"] == "deadly"]

        (letter,) = wait_until(letters, within_s=2 * PATIENCE_S, what="the dead letter")
        assert letter["handler"] == "handlers.fares.book", letter
