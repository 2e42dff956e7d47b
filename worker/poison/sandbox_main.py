"""`python -m maskline.worker.poison.sandbox_main`: runs one handler on one event, in a process that this may crash.

`worker.poison.sandbox` is the worker's side, `worker.poison.sandbox_protocol` has the messages.

Arguments: the descriptor of a socket, and the worker's process id. If the worker dies, this process dies with it, as it
holds no lease of its own.
"""

import asyncio
import contextlib
import inspect
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from maskline.runtime.logs import configure_logging, unblock_standard_streams
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.process.die_with_parent import die_with_parent
from maskline.runtime.process.event_loop import loop_factory
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import MasklineError
from maskline.schemas.events import Event
from maskline.schemas.privacy import set_token_key
from maskline.schemas.settings import Settings
from maskline.worker.api.binding import BoundHandler, bind, only
from maskline.worker.api.context import Context
from maskline.worker.api.failure_verdict import failure_origin, failure_report
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.resources import Resources
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.threads import HandlerThreads
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.error_text import short_traceback, storable_text
from maskline.worker.ordering.reorder import Release
from maskline.worker.ordering.state import NEW_SESSION
from maskline.worker.poison.sandbox_protocol import (
    CLOSE_S,
    HEAD_BYTES,
    HandlerDone,
    HandlerFailed,
    HandlerNotStarted,
    HandlerStarted,
    SandboxRequest,
    decode_request,
    encode,
)

REASON_MAX_CHARS: Final = 1_000
"""Bounds the reason why a handler could not be called."""

OOM_SCORE: Final = 1_000
"""The kernel kills this process before any other when memory runs out."""


def main(descriptor: int, worker: int) -> None:
    """Run what the worker asks for, and report. `descriptor`: of the socket. `worker`: the worker's process id."""
    die_with_parent(worker, signal.SIGKILL)
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    request = decode_request(_receive(connection, int.from_bytes(_receive(connection, HEAD_BYTES), "big")))
    threading.Thread(
        target=_exit_with_worker, args=(connection,), name="maskline-worker-watch", daemon=True
    ).start()
    _make_expendable()
    sys.path[:] = request.path
    configure_logging(Settings(log_format=request.log_format, log_level=request.log_level))
    unblock_standard_streams()
    set_token_key(request.token_key)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run_request(request, connection))
    except Exception as error:  # noqa: BLE001  whatever it is, the worker goes on without a sandbox
        # After the outcome nobody reads this.
        reason = KNOWN_NUMBERS.redact(" ".join(storable_text(f"{type(error).__name__}: {error}").split()))
        connection.sendall(encode(HandlerNotStarted(reason[:REASON_MAX_CHARS])))


def _exit_with_worker(connection: socket.socket) -> None:
    """Exit when the worker closes the socket: it sends nothing after the request. Needed where the kernel sends no
    signal.
    """
    with contextlib.suppress(OSError):
        connection.recv(1)
    os._exit(1)


def _make_expendable() -> None:
    """Ignore the signals of an operator, as only the worker ends this process, and let the kernel kill it first."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        # Functions, as SIG_IGN would be passed on to programs that the handler runs.
        signal.signal(signum, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (more := connection.recv(size - len(received))):
            os._exit(1)
        received += more
    return received


async def run_request(request: SandboxRequest, connection: socket.socket) -> None:
    """Load the handler, run its attempt, and report over the socket.

    Raises ConfigError where the modules cannot be loaded or a resource cannot be opened, MasklineError where the
    handler does not want the event: the caller reports HandlerNotStarted.
    """
    handlers = only(load_handlers(request.modules), request.handler)
    decoder = entry_decoder(request.ignored_parameters)
    arrival = decoder.arrival_of(request.entry_id, (CALLBACK_FIELD, request.callback), recording_shared=False)
    if request.replayed:
        arrival = replace(arrival, payload=replace(arrival.payload, replayed=True))
    release = Release(arrival, request.order, request.missing, request.run, NEW_SESSION)
    event: Event = arrival.payload.event
    KNOWN_NUMBERS.add_event(event)
    resources = Resources()
    try:
        bound = bind(handlers, await resources.open(handlers.resources))[type(event)]
        if not bound:
            raise MasklineError(f"no handler {request.handler} wants this event")
        (handler,) = bound
        ctx = Context(
            release,
            handler.name,
            request.attempt,
            request.fencing_token,
            skipped=request.skipped,
        )
        connection.sendall(encode(HandlerStarted()))
        clean = CleanContext(resources.context)
        failure = await asyncio.create_task(_attempt(handler, event, ctx, clean), context=clean.copy())
        connection.sendall(encode(HandlerDone() if failure is None else _failed(failure)))
    finally:
        await resources.close(CLOSE_S)


async def _attempt(
    handler: BoundHandler, event: Event, ctx: Context, clean: CleanContext
) -> BaseException | None:
    """Run the handler. Returns the exception it failed with; None if it handled the event. The worker keeps the time
    limit.
    """
    try:
        if handler.in_thread:
            result = await HandlerThreads().run(handler.call, event, ctx, context=clean.copy())
            if inspect.isawaitable(result):
                await result
        else:
            await handler.call(event, ctx)
    except BaseException as error:  # noqa: BLE001  whatever a handler raises is its own affair
        return error
    return None


def _failed(failure: BaseException) -> HandlerFailed:
    return HandlerFailed(failure_report(failure), short_traceback(failure), failure_origin(failure))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
