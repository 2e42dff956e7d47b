"""Both ends at once: an ingest process in front of a fleet of workers, and signed callbacks that go in."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self
from urllib.parse import urlencode
from uuid import uuid4

import aiohttp
from process_kit import PATIENCE_S, Fleet
from servers import wait_until

from maskline.ingest.auth.signatures import sign_v3
from maskline.schemas.parameters import FORM_TYPE, Parameters

AUTH_ID, AUTH_TOKEN = "MAXXXXXXXXXXXXXXXXXX", "a-token-of-nobody"
SESSIONS = 16
PAUSE_S = 0.01
"""Between two callbacks of a session: what goes wrong meanwhile takes seconds, and more of them would show no more."""


@contextlib.contextmanager
def ingest(crew: Fleet, *, name: str = "ingest", **settings: Any) -> Iterator[str]:
    """An ingest process with a log of this name; the URL for callbacks. It must stop well in the end."""
    log = crew.directory / f"{name}.log"
    environment = crew.environment(
        **{"handlers": None, "host": "127.0.0.1", "port": 0, "auth_tokens": f"{AUTH_ID}:{AUTH_TOKEN}"}
        | {"spool_dir": crew.directory / "spool"}
        | settings
    )
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "maskline.ingest"], env=environment, stderr=stderr)

    def listens() -> Any:
        assert process.poll() is None, log.read_text()
        return re.search(r'ingest started.*"url":"(http://127\.0\.0\.1:\d+/callbacks)"', log.read_text())

    try:
        yield wait_until(listens, within_s=PATIENCE_S, what="ingest to listen")[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


async def post(
    client: aiohttp.ClientSession,
    url: str,
    session: str,
    number: int | None,
    event: str = "SessionFirstPartyRinging",
    *,
    token: str = AUTH_TOKEN,
) -> int:
    """Send one callback signed with this token; the status of its answer."""
    pairs = [
        ("EventName", event),
        ("SessionUUID", session),
        *([] if number is None else [("SequenceNumber", str(number))]),
        ("From", "+14155550123"),
        ("To", "+14155550199"),
    ]
    nonce = uuid4().hex
    signature = sign_v3(token, "POST", url, Parameters([], pairs, None), nonce)
    headers = {
        "Content-Type": FORM_TYPE,
        "X-Plivo-Signature-V3": signature,
        "X-Plivo-Signature-V3-Nonce": nonce,
    }
    async with client.post(url, data=urlencode(pairs), headers=headers) as response:
        await response.read()
        return response.status


def post_all(url: str, sessions: Iterable[str], number: int, *, token: str = AUTH_TOKEN) -> set[int]:
    """Send one callback of each session, all at once; the statuses there were."""

    async def send() -> set[int]:
        async with aiohttp.ClientSession() as client:
            posts = (post(client, url, session, number, token=token) for session in sessions)
            return {*await asyncio.gather(*posts)}

    return asyncio.run(send())


class Traffic:
    """SESSIONS clients, each sending one session's callbacks one after the other until `stop`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.taken: list[tuple[str, int]] = []
        """Session and number of what was answered 200."""
        self.answers: Counter[int] = Counter()
        self.seconds: list[float] = []
        """How long each answer took."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def until(self, more: int) -> None:
        """Wait until so many more were answered 200."""
        target = len(self.taken) + more
        wait_until(lambda: len(self.taken) >= target, within_s=PATIENCE_S, what=f"{more} more answers")

    def until_handled(self, crew: Fleet) -> None:
        """Wait until handlers have seen all that was answered 200."""

        def missing() -> int:
            return len(set(self.taken) - {(call.session, call.number) for call in crew.calls()})

        wait_until(lambda: not missing(), within_s=PATIENCE_S, what="all that was answered to be handled")

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as client:
            await asyncio.gather(*(self._play(client, f"s{number}") for number in range(SESSIONS)))

    async def _play(self, client: aiohttp.ClientSession, session: str) -> None:
        number = 1
        loop = asyncio.get_running_loop()
        while not self._stopping:
            start = loop.time()
            status = await post(client, self._url, session, number)
            self.answers[status] += 1
            self.seconds.append(loop.time() - start)
            if status == 200:
                self.taken.append((session, number))
                number += 1
            await asyncio.sleep(PAUSE_S)
