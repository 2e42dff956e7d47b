"""`python -m maskline.ingest` as processes, and clients that note what they were answered."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import Any

import ingest_kit
from ingest_kit import MAIN, MAIN_TOKEN, Client, Request, stored

from maskline.schemas.settings import Settings


class Process:
    """`python -m maskline.ingest` with settings in its environment."""

    def __init__(self, *arguments: str, **settings: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
        defaults = {
            "auth_tokens": f"{MAIN}:{MAIN_TOKEN}",
            "host": "127.0.0.1",
            "port": "0",
            "admin_port": "0",
            "partitions": "4",
            "log_format": "json",
            "spool_dir": str(ingest_kit.SPOOL_DIR),
        }
        environment |= {
            f"MASKLINE_{name.upper()}": str(value) for name, value in (defaults | settings).items()
        }
        self.log = ""
        """What it has written so far, as far as it was read."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maskline.ingest", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def port(self) -> int:
        """The port, once it takes callbacks."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r'ingest started.*"url":"http://[^/"]+:(\d+)/', line):
                return int(found[1])
        raise AssertionError("it ended before it took callbacks")

    def kill(self, signum: int = signal.SIGKILL) -> int:
        self.process.send_signal(signum)
        return self.ended()[0]

    def ended(self) -> tuple[int, str]:
        _, rest = self.process.communicate(timeout=60)
        self.log += rest
        return self.process.returncode, rest


async def hammer(port: int, name: str, taken: list[str], answers: list[str]) -> None:
    """Send numbered callbacks one after the other until the connection ends; note those that were answered 200."""
    number = 0
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with await Client.connect(port) as client:
            while True:
                number += 1
                mark = f"{name}-{number}"
                response = await client.ask(
                    Request(pairs=[("SessionUUID", mark), ("EventName", "e")]).encode()
                )
                answers.append("taken" if response.status == 200 else f"{response.status} {response.body!r}")
                if response.status == 200:
                    taken.append(mark)
                if response.headers.get("connection") == "close":
                    return


def marks(client: Any, settings: Settings) -> set[str]:
    return {
        re.search(rb"SessionUUID=([\w-]+)", callback.body)[1].decode()
        for callback in stored(client, settings)
    }
