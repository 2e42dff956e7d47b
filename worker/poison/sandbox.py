"""Runs a suspect's handler in a process of its own, so that a crash ends that alone. The worker's side.

The other side is `worker.poison.sandbox_main`; both talk over a socket pair (`worker.poison.sandbox_protocol`).

- If the sandbox dies after HandlerStarted without another report, the handler is considered to crash its process.
- A SIGKILL may have come from outside, so it takes KILLED_MAX of them in a row.
- A run that could not call the handler counts for nothing; after IMPOSSIBLE_MAX such runs in a row this worker goes on
  without a sandbox.
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
from maskline.schemas.errors import MasklineError
from maskline.schemas.privacy import token_key
from maskline.schemas.settings import Settings
from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.context import Context
from maskline.worker.api.exceptions import HandlerCrashedError
from maskline.worker.api.failure_verdict import FailedInSandboxError, overtime
from maskline.worker.counters import Counters
from maskline.worker.ordering.reorder import Release
from maskline.worker.poison.sandbox_protocol import (
    CLOSE_S,
    HEAD_BYTES,
    REPORT_MAX_BYTES,
    HandlerFailed,
    HandlerNotStarted,
    HandlerStarted,
    Report,
    SandboxRequest,
    decode_report,
    encode,
)

START_S: Final = 60.0
"""How long the start may take: modules are imported and resources opened before the handler starts."""

POLL_INTERVAL_S: Final = 0.02
"""How soon the end of the process is noticed if a child of its own still holds its end of the socket."""

KILLED_MAX: Final = 3
"""Runs ended by SIGKILL that confirm a crash: the kernel out of memory, or an operator, sends SIGKILL too."""

IMPOSSIBLE_MAX: Final = 3
"""Runs in a row that could not begin, before this process runs no more of them."""

_log = get_logger("maskline.worker")


class SandboxUnavailableError(MasklineError):
    """The handler was not called: no process started, or it could not load the modules or open the resources."""


class _ProcessDied(Exception):  # noqa: N818  not an error: one outcome of a run
    """The process has ended without an outcome, after the handler started."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


class Sandbox:
    """The sandbox of a worker process: one run at a time, each in a new process.

    `names`: the handlers that another process can load, by the names in MASKLINE_HANDLERS. `counters`: counts the runs
    by outcome: `handled`, `failed`, `crashed`, `impossible`.
    """

    def __init__(self, settings: Settings, names: Collection[str], counters: Counters) -> None:
        self._settings = settings
        self._names = names
        self._counters = counters
        self._impossible = 0
        self._lock = asyncio.Lock()
        """One run at a time: each is a process."""

    def available(self, handler: str) -> bool:
        """Whether the handler of this name can run in a sandbox."""
        return handler in self._names and self._impossible < IMPOSSIBLE_MAX

    async def run(self, handler: BoundHandler, release: Release, ctx: Context, crashes: int) -> None:
        """Run one attempt. `crashes`: how often the handler crashed on the event so far.

        Returns if the handler handled the event, which clears it. Raises the failure otherwise: FailedInSandboxError,
        HandlerTimeoutError or HandlerHungError at its time limit, or HandlerCrashedError if it crashed the process.
        Raises SandboxUnavailableError if it was not called.
        """
        request = self._request(handler, release, ctx)
        _log.warning(
            "sandbox run started",
            handler=handler.name,
            session_uuid=ctx.session_uuid,
            entry_id=ctx.entry_id,
            crashes=crashes,
        )
        for _ in range(KILLED_MAX):
            try:
                async with self._lock:
                    await self._run_process(handler, request)
            except SandboxUnavailableError:
                self._impossible += 1
                self._counters.sandbox_runs["impossible"] += 1
                raise
            except _ProcessDied as death:
                self._impossible = 0
                sandbox_exit = _describe_exit(death.exit_code)
                if death.exit_code != -signal.SIGKILL:
                    break
            except MasklineError:
                self._counters.sandbox_runs["failed"] += 1
                raise
            else:
                self._impossible = 0
                self._counters.sandbox_runs["handled"] += 1
                return
        self._counters.sandbox_runs["crashed"] += 1
        raise HandlerCrashedError(crashes, sandbox_exit)

    def _request(self, handler: BoundHandler, release: Release, ctx: Context) -> bytes:
        settings = self._settings
        request = SandboxRequest(
            modules=settings.handlers,
            path=sys.path,
            log_format=settings.log_format,
            log_level=settings.log_level,
            token_key=token_key(),
            handler=handler.name,
            entry_id=ctx.entry_id,
            callback=release.arrival.payload.encoded,
            order=release.order,
            missing=release.missing,
            run=release.run,
            attempt=ctx.attempt,
            fencing_token=ctx.fencing_token,
            skipped=ctx.skipped,
            replayed=ctx.replayed,
            ignored_parameters=frozenset(settings.ignored_parameters),
        )
        return encode(request)

    async def _run_process(self, handler: BoundHandler, request: bytes) -> None:
        worker_end, sandbox_end = socket.socketpair()
        process: subprocess.Popen[bytes] | None = None
        try:
            with sandbox_end:
                process = _spawn(sandbox_end)
            worker_end.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=worker_end)
            try:
                writer.write(request)
                await _follow(handler, process, reader)
                await _until_ended(process, monotonic() + CLOSE_S)
            finally:
                writer.close()
        finally:
            worker_end.close()
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()


def _spawn(sandbox_end: socket.socket) -> subprocess.Popen[bytes]:
    descriptor = sandbox_end.fileno()
    module = "maskline.worker.poison.sandbox_main"
    try:
        # In a process group of its own: a terminal's Ctrl-C is the worker's affair.
        return subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-P", "-m", module, str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            process_group=0,
        )
    except (OSError, ValueError) as error:
        raise SandboxUnavailableError(f"no process could be started: {type(error).__name__}") from None


async def _follow(
    handler: BoundHandler, process: subprocess.Popen[bytes], reader: asyncio.StreamReader
) -> None:
    """Follow a run to its outcome: return if the event is handled, else raise the failure."""
    report = await _next_report(process, reader, START_S)
    if isinstance(report, HandlerNotStarted):
        raise SandboxUnavailableError(report.reason)
    if not isinstance(report, HandlerStarted):
        raise SandboxUnavailableError("its process ended, or hung, before the handler started")
    report = await _next_report(process, reader, handler.timeout_s)
    if isinstance(report, HandlerFailed):
        raise FailedInSandboxError(report.report, report.traceback, report.origin)
    if report is None:
        if (exit_code := process.poll()) is None:
            raise overtime(handler, in_thread=handler.in_thread)
        raise _ProcessDied(exit_code)


async def _next_report(
    process: subprocess.Popen[bytes], reader: asyncio.StreamReader, timeout_s: float
) -> Report | None:
    """The next report; None if the process has ended without one, or the time is over."""
    reading = asyncio.ensure_future(_read_report(reader))
    deadline = monotonic() + timeout_s
    try:
        while not reading.done():
            ended = process.poll() is not None or monotonic() >= deadline
            await asyncio.wait({reading}, timeout=POLL_INTERVAL_S)
            if ended:
                break
        if not reading.done():
            return None
        report = reading.result()
        if report is None:
            await _until_ended(process, deadline)  # its end of the socket is closed before the process ends
        return report
    finally:
        reading.cancel()


async def _read_report(reader: asyncio.StreamReader) -> Report | None:
    try:
        size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
        return decode_report(await reader.readexactly(size)) if size <= REPORT_MAX_BYTES else None
    except (asyncio.IncompleteReadError, OSError, ValueError):
        return None


async def _until_ended(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for the end of the process, at most until the deadline, by `monotonic()`."""
    while process.poll() is None and monotonic() < deadline:  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(POLL_INTERVAL_S)


def _describe_exit(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
