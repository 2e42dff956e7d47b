"""`python -m maskline.worker.poison.sandbox_main`: one handler, one event, in a process that may die of it.

The worker's side is `trials`.

Arguments: the descriptor of a socket, and the worker's process id. In comes a Request; out go Started, right before the
handler is called, and Handled or Failed; or Impossible, where it does not come to that. Each is a msgpack map after its
length. Whenever the worker dies, this process dies with it: it holds no lease of its own.
"""

import asyncio
import contextlib
import ctypes
import inspect
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from random import random
from typing import Any, Final, Literal

import msgspec

from maskline.runtime.logs import configure_logging, wait_for_no_reader
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import MasklineError
from maskline.schemas.events import Event
from maskline.schemas.privacy import set_token_key
from maskline.schemas.settings import Settings
from maskline.worker.api.context import Context
from maskline.worker.api.failures import judge
from maskline.worker.api.registry import BoundHandler, bind, load_handlers, only
from maskline.worker.api.resources import Resources
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.threads import HandlerThreads
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.error_text import short_traceback, storable_text
from maskline.worker.ordering.reorder import Order, Release
from maskline.worker.ordering.state import NEW_SESSION

HEAD_BYTES: Final = 4

REPORT_MAX_BYTES: Final = 1 << 20
"""Of one report: many times the longest traceback."""

CLOSE_S: Final = 5.0
"""For closing the resources, after the outcome."""

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

OOM_SCORE: Final = 1_000
"""The kernel out of memory takes this process before any other."""


class Request(msgspec.Struct, frozen=True):
    """What is to be tried."""

    modules: tuple[str, ...]
    """As MASKLINE_HANDLERS has them."""
    path: list[str]
    """Where the worker imports from."""
    log_format: Literal["auto", "json", "console"]
    log_level: Literal["debug", "info", "warning", "error"]
    token_key: bytes
    handler: str
    entry_id: str
    callback: bytes
    """The entry's field, as it lies in the stream."""
    order: Order
    missing: tuple[int, ...]
    run: int
    attempt: int
    fencing_token: int
    ignored_parameters: frozenset[str] = frozenset()
    """As MASKLINE_IGNORED_PARAMETERS has them: the idempotency key is to be the worker's."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """The handler is called now."""


class Handled(msgspec.Struct, frozen=True, tag=True):
    """The handler came to its end."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The handler failed; what follows is decided here, where its exception is. As `outcome.Verdict`."""

    delay_ms: float | None
    code: str
    reason: str
    traceback: str


class Impossible(msgspec.Struct, frozen=True, tag=True):
    """The handler could not be called."""

    reason: str


Report = Started | Handled | Failed | Impossible

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_reports = msgspec.msgpack.Decoder(Report)


def encode(message: Request | Report) -> bytes:
    """A message with its length before it."""
    encoded = _encoder.encode(message)
    return len(encoded).to_bytes(HEAD_BYTES, "big") + encoded


def decode_report(encoded: bytes) -> Report:
    """Raises ValueError for anything that is none."""
    report: Report = _reports.decode(encoded)
    return report


# The trial's process


def main(descriptor: int, worker: int) -> None:
    """Try what the worker asks for, and report."""
    _die_with(worker)
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)
    request = _requests.decode(_receive(link, int.from_bytes(_receive(link, HEAD_BYTES), "big")))
    threading.Thread(target=_watch, args=(link,), name="maskline-worker-watch", daemon=True).start()
    _expendable()
    sys.path[:] = request.path
    configure_logging(Settings(log_format=request.log_format, log_level=request.log_level))
    wait_for_no_reader()
    set_token_key(request.token_key)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_try(request, link))
    except Exception as error:  # noqa: BLE001  whatever it is, the worker goes on without a trial
        # After the outcome nobody reads this.
        reason = KNOWN_NUMBERS.redact(" ".join(storable_text(f"{type(error).__name__}: {error}").split()))
        link.sendall(encode(Impossible(reason[:1_000])))


def _die_with(worker: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != worker:  # it died before the kernel knew our wish
        os._exit(1)


def _watch(link: socket.socket) -> None:
    """The worker sends nothing more: what comes is its end, seen where the kernel does not tell of it."""
    with contextlib.suppress(OSError):
        link.recv(1)
    os._exit(1)


def _expendable() -> None:
    """Nobody but the worker ends this process, and its end costs nobody anything."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        # Functions, as SIG_IGN would be passed on to programs that the handler runs.
        signal.signal(signum, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def _receive(link: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (more := link.recv(size - len(received))):
            os._exit(1)
        received += more
    return received


async def _try(request: Request, link: socket.socket) -> None:
    handlers = only(load_handlers(request.modules), request.handler)
    decoder = entry_decoder(request.ignored_parameters)
    arrival = decoder.arrival_of(request.entry_id, (CALLBACK_FIELD, request.callback), recording_shared=False)
    release = Release(arrival, request.order, request.missing, request.run, NEW_SESSION)
    event: Event = arrival.payload.event
    KNOWN_NUMBERS.seen(event)
    resources = Resources()
    try:
        bound = bind(handlers, await resources.open(handlers.resources))[type(event)]
        if not bound:
            raise MasklineError(f"no handler {request.handler} wants this event")
        (handler,) = bound
        ctx = Context(release, handler.name, request.attempt, request.fencing_token)
        link.sendall(encode(Started()))
        clean = CleanContext(resources.context)
        failure = await asyncio.create_task(_attempt(handler, event, ctx, clean), context=clean.copy())
        link.sendall(encode(Handled() if failure is None else _failed(failure, handler, request.attempt)))
    finally:
        await resources.close(CLOSE_S)


async def _attempt(
    handler: BoundHandler, event: Event, ctx: Context, clean: CleanContext
) -> BaseException | None:
    """What the handler failed with. The time limit is the worker's affair."""
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


def _failed(failure: BaseException, handler: BoundHandler, attempt: int) -> Failed:
    verdict = judge(failure, handler.policy, attempt, jitter=random())  # noqa: S311  no secret
    return Failed(verdict.delay_ms, verdict.code, verdict.reason, short_traceback(failure))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
