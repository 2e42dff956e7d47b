"""Carries out what operators do in a chaos run, by the commands that operators have, and writes down how they ended.

A command talks to the server past the proxies, and may find it away: then it ends with 1, and the run goes on.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis
from history import Discarded, Fact, Operated, Rerun
from operations import Operation
from stage import Stage, tag_of

from maskline.schemas.callback import CALLBACK_FIELD, decode_callback
from maskline.schemas.decode import decode_event
from maskline.worker.entries.dead_letter import decode_dead_letter, public_id

MASKLINE = str(Path(sys.executable).with_name("maskline"))

COMMAND_MAX_S = 20.0
"""Then Ctrl-C: what it asked for goes on without it."""
DISCARDED_MAX = 3
ROUNDS_MAX = 10
"""Replays in the end: one that meets a dying connection may end before it is done."""


class Operators:
    """`mended`: the file whose existence mends the handlers. `note` takes what is worth writing down."""

    def __init__(self, stage: Stage, note: Callable[[Fact], None], mended: Path, seed: int) -> None:
        self._stage = stage
        self._note = note
        self._mended = mended
        self._rng = random.Random(f"{seed}:choices")
        self.discarded: set[tuple[str, str]] = set()
        """Tag and handler of what was to be discarded."""

    async def run(self, planned: list[Operation], stop: asyncio.Event) -> None:
        """Do everything at its time; `stop` leaves out the rest. A command that takes long holds up no other."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for operation in planned:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(start + operation.at_s - time.monotonic()):
                        await stop.wait()
                if stop.is_set():
                    break
                group.create_task(self._do(operation))

    async def resume_all(self) -> None:
        """Resume all handlers: a command to do so may have found the server away, or a failover have taken it back."""
        for handler in ("ends", "remote"):
            await self._command("resume", handler, "--yes")

    async def settle(self, stop: asyncio.Event) -> None:
        """Mend everything, and replay dead letters until there are none."""
        self._mended.touch()
        for _ in range(ROUNDS_MAX):
            if stop.is_set() or not await asyncio.to_thread(self._letters, ""):
                return
            await self._command("dead", "replay", "--all", "--yes")

    async def _do(self, operation: Operation) -> None:
        of_handler = ("--handler", operation.what) if operation.what else ("--all",)
        try:
            match operation.deed:
                case "pause" | "resume":
                    await self._command(operation.deed, operation.what, "--yes")
                case "mend":
                    self._mended.touch()
                case "replay":
                    await self._command("dead", "replay", *of_handler, "--yes")
                case "discard":
                    await self._discard(operation.what)
                case "rerun":
                    await self._rerun()
        except redis.RedisError:
            return  # the server is away; there is always another time

    async def _discard(self, handler: str) -> None:
        letters = await asyncio.to_thread(self._letters, handler)
        chosen = self._rng.sample(letters, min(len(letters), DISCARDED_MAX))
        for _, tag, of in chosen:
            self.discarded.add((tag, of))
            self._note(Discarded(tag, of, time.monotonic()))
        if chosen:
            await self._command("dead", "discard", *(name for name, _, _ in chosen), "--yes")

    async def _rerun(self) -> None:
        session = await asyncio.to_thread(self._some_session)
        if session:
            self._note(Rerun(session, time.monotonic()))
            await self._command("replay", "--session", session, "--yes")

    def _letters(self, handler: str) -> list[tuple[str, str, str]]:
        """Dead letters: their names, tags and handlers; those of one handler, or of all."""
        found: list[tuple[str, str, str]] = []
        for number in range(self._stage.partitions):
            for entry_id, fields in self._stage.client.xrange(self._stage.keys.dead(number)):
                letter = decode_dead_letter(fields[b"d"])
                if letter.handler is not None and handler in ("", letter.handler):
                    name = public_id(number, entry_id.decode())
                    found.append((name, tag_of(letter.callback), letter.handler))
        return found

    def _some_session(self) -> str:
        """A session of which the streams still keep something; empty if there is none."""
        for number in self._rng.sample(range(self._stage.partitions), self._stage.partitions):
            kept = self._stage.client.xrange(self._stage.keys.callbacks(number), count=1)
            if kept:
                callback = decode_callback(kept[0][1][CALLBACK_FIELD])
                return decode_event(callback).event.session_uuid
        return ""

    async def _command(self, *arguments: str) -> None:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            MASKLINE,
            *arguments,
            env=self._stage.operator_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        said = asyncio.create_task(process.communicate())
        try:
            await asyncio.wait([said], timeout=COMMAND_MAX_S)
            if not said.done():
                process.send_signal(signal.SIGINT)
            _, errors = await said
        finally:
            if process.returncode is None:
                process.kill()
        code, text = process.returncode, errors.decode(errors="replace").strip()
        last = text if "Traceback" in text else text.rpartition("\n")[2]
        self._note(Operated(" ".join(arguments), began, time.monotonic(), code, last if code else ""))
