"""Trials: a suspect's handler in a process of its own, which alone dies of what it does. The worker's side.

The other side is `worker.poison.sandbox_main`. Both talk over a socket pair: a Request in, Started and one outcome
out. A process that ends without an outcome, once the handler has started, convicts the handler. Where SIGKILL has
ended it that may have come from outside, so it takes several.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from time import monotonic
from typing import Final

from maskline.runtime.logs import get_logger
from maskline.schemas import privacy
from maskline.schemas.errors import MasklineError
from maskline.schemas.settings import Settings
from maskline.worker.api.context import Context
from maskline.worker.api.failures import HandlerCrashedError, TrialFailedError, Verdict, overtime
from maskline.worker.api.registry import BoundHandler
from maskline.worker.counters import Counters
from maskline.worker.ordering.reorder import Release
from maskline.worker.poison.sandbox_main import (
    CLOSE_S,
    HEAD_BYTES,
    REPORT_MAX_BYTES,
    Failed,
    Impossible,
    Report,
    Request,
    Started,
    decode_report,
)
from maskline.worker.poison.sandbox_main import encode as encode_request

START_S: Final = 60.0
"""Until the handler starts: its modules are imported and its resources opened first."""

POLL_S: Final = 0.02
"""How soon the end of the process is noticed where its end of the socket lives on, in a child that it has left."""

KILLED_MAX: Final = 3
"""Trials that SIGKILL may end before that convicts: the kernel out of memory, or somebody outside, kills so too."""

IMPOSSIBLE_MAX: Final = 3
"""Trials in a row that could not begin; after that there are no more in this process."""

_log = get_logger("maskline.worker")


class TrialImpossibleError(MasklineError):
    """The handler was not reached: no process, or one that could not load or open what the handler needs."""


class _Ended(Exception):  # noqa: N818  not an error: what a trial may come to
    """The process has ended without an outcome, after the handler started."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


class Sandbox:
    """`names`: the handlers that another process can load, by the names in MASKLINE_HANDLERS."""

    def __init__(self, settings: Settings, names: Collection[str], counters: Counters) -> None:
        self._settings = settings
        self._names = names
        self._counters = counters
        self._impossible = 0
        self._court = asyncio.Lock()
        """One trial at a time: each is a process."""

    def can_try(self, handler: str) -> bool:
        return handler in self._names and self._impossible < IMPOSSIBLE_MAX

    async def hold(self, handler: BoundHandler, release: Release, ctx: Context, strikes: int) -> None:
        """Run one attempt. Returns if the handler handled the event, raises what it failed with otherwise.

        That is TrialFailedError, one of the time limit's, or HandlerCrashedError where it has brought the process
        down. Raises TrialImpossibleError where nothing was tried.
        """
        request = self._request(handler, release, ctx)
        _log.warning(
            "trying a handler in a process of its own", handler=handler.name, session_uuid=ctx.session_uuid,
            entry_id=ctx.entry_id, strikes=strikes,
        )  # fmt: skip
        for _ in range(KILLED_MAX):
            try:
                async with self._court:
                    await self._once(handler, request)
            except TrialImpossibleError:
                self._impossible += 1
                self._counters.trials["impossible"] += 1
                raise
            except _Ended as ended:
                self._impossible = 0
                how = _how(ended.exit_code)
                if ended.exit_code != -signal.SIGKILL:
                    break
            except MasklineError:
                self._counters.trials["failed"] += 1
                raise
            else:
                self._impossible = 0
                self._counters.trials["handled"] += 1
                return
        self._counters.trials["crashed"] += 1
        raise HandlerCrashedError(strikes, how)

    def _request(self, handler: BoundHandler, release: Release, ctx: Context) -> bytes:
        settings = self._settings
        return encode_request(
            Request(
                modules=settings.handlers, path=sys.path, log_format=settings.log_format,
                log_level=settings.log_level, token_key=privacy._token_key,  # noqa: SLF001  logs must agree on tokens
                handler=handler.name, entry_id=ctx.entry_id, callback=release.arrival.payload.encoded,
                ignored_parameters=frozenset(settings.ignored_parameters),
                order=release.order, missing=release.missing, run=release.run, attempt=ctx.attempt,
                fencing_token=ctx.fencing_token,
            )
        )  # fmt: skip

    async def _once(self, handler: BoundHandler, request: bytes) -> None:
        ours, theirs = socket.socketpair()
        process: subprocess.Popen[bytes] | None = None
        try:
            with theirs:
                process = _spawn(theirs)
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                writer.write(request)
                await _outcome(handler, process, reader)
                await _ended(process, monotonic() + CLOSE_S)
            finally:
                writer.close()
        finally:
            ours.close()
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    try:
        # In a process group of its own: a terminal's Ctrl-C is the worker's affair.
        return subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-P", "-m", "maskline.worker.poison.sandbox_main", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), process_group=0,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise TrialImpossibleError(f"no process could be started: {type(error).__name__}") from None


async def _outcome(
    handler: BoundHandler, process: subprocess.Popen[bytes], reader: asyncio.StreamReader
) -> None:
    """Follow a trial to its outcome: return, or raise what it came to."""
    report = await _next(process, reader, START_S)
    if isinstance(report, Impossible):
        raise TrialImpossibleError(report.reason)
    if not isinstance(report, Started):
        raise TrialImpossibleError("its process ended, or hung, before the handler started")
    report = await _next(process, reader, handler.timeout_s)
    if isinstance(report, Failed):
        raise TrialFailedError(Verdict(report.delay_ms, report.code, report.reason), report.traceback)
    if report is None:
        if (exit_code := process.poll()) is None:
            raise overtime(handler, in_thread=handler.in_thread)
        raise _Ended(exit_code)


async def _next(
    process: subprocess.Popen[bytes], reader: asyncio.StreamReader, timeout_s: float
) -> Report | None:
    """The next report; None if the process has ended without one, or the time is over."""
    reading = asyncio.ensure_future(_read(reader))
    deadline = monotonic() + timeout_s
    try:
        while not reading.done():
            ended = process.poll() is not None or monotonic() >= deadline
            await asyncio.wait({reading}, timeout=POLL_S)
            if ended:
                break
        if not reading.done():
            return None
        report = reading.result()
        if report is None:
            await _ended(process, deadline)  # its end of the socket goes before it does
        return report
    finally:
        reading.cancel()


async def _read(reader: asyncio.StreamReader) -> Report | None:
    try:
        size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
        return decode_report(await reader.readexactly(size)) if size <= REPORT_MAX_BYTES else None
    except (asyncio.IncompleteReadError, OSError, ValueError):
        return None


async def _ended(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for the end of the process, at most until the deadline."""
    while process.poll() is None and monotonic() < deadline:  # noqa: ASYNC110  it tells nobody
        await asyncio.sleep(POLL_S)


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
