"""`maskline dev`: an embedded Valkey, an ingest node, a worker and a live view in one process and one terminal.

Dev supplies settings that are not set, and prints them: a server and an account under `.maskline`, free ports. Settings
that are set are used as they are, so that dev behaves as production would.
"""

import asyncio
import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
from rich.console import Console

from maskline.console import dev_handler
from maskline.console.account import STATE_DIRECTORY, Account, find_account, throw_away_account
from maskline.console.arrivals import Arrivals
from maskline.console.demo import Demo
from maskline.console.embedded_server import EmbeddedServer
from maskline.console.live_view import Counts, LiveView
from maskline.console.reload.worker_slot import WorkerSlot
from maskline.console.running_dev import announced
from maskline.console.simulate.player import Target
from maskline.ingest.node import IngestNode
from maskline.runtime.cli import CommandParser
from maskline.runtime.logs import configure_logging, unblock_standard_streams
from maskline.runtime.net.binding import is_free
from maskline.runtime.process.run import run
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import Parameters
from maskline.schemas.settings import ADMIN_PORTS, Settings, SettingsWithSources, read_settings
from maskline.worker.counters import Counters
from maskline.worker.node import WorkerNode

if TYPE_CHECKING:
    from maskline.console.reload.reloader import Reloader

PORTS_TRIED: Final = 100
"""From the default upwards. With more instances on one machine, set the port."""
READY_TIMEOUT_S: Final = 15.0
READY_POLL_S: Final = 0.02


def main(argv: list[str]) -> int:
    """Run `maskline dev` with these arguments; the exit code. Raises ConfigError."""
    parser = CommandParser(
        prog="maskline dev",
        description="Run everything in this terminal: an embedded Valkey (unless MASKLINE_REDIS_URL is set), "
        "ingest, a worker, and a view of what arrives and how it was put in order.",
    )
    parser.add_argument("--demo", action="store_true", help="play a few dozen simulated sessions at once")
    parser.add_argument("--exit", action="store_true", help="end after the demo: 0 if all went well, else 1")
    parser.add_argument(
        "--reload", action="store_true", help="have a handler module run in its new version once it is saved"
    )
    arguments = parser.parse_args(argv)
    if arguments.exit and not arguments.demo:
        raise ConfigError("dev: --exit belongs to --demo")
    if arguments.reload and importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("dev: --reload needs an extra: pip install 'maskline[reload]'")
    reading = read_settings()
    # Without handlers of the user's own, only warnings are worth a line beside the live view.
    quiet = reading.sources["log_level"] == "default" and reading.sources["handlers"] == "default"
    log_settings = msgspec.structs.replace(reading.settings, log_level="warning")
    configure_logging(log_settings if quiet else reading.settings)
    unblock_standard_streams()
    dev = Dev(reading, demo=arguments.demo, exit_after=arguments.exit, reload=arguments.reload)
    return run(dev.run, stop_timeout_ms=reading.settings.stop_delay_ms + reading.settings.stop_timeout_ms)


class Dev:
    """One run of `maskline dev`."""

    def __init__(
        self, reading: SettingsWithSources, *, demo: bool, exit_after: bool, reload: bool = False
    ) -> None:
        self._reading = reading
        self._reload = reload
        self._demo = demo
        self._exit_after = exit_after
        self._console = Console()
        self._embedded: EmbeddedServer | None = None
        self._counters = Counters()
        """Of the worker, and of those that reloads have put in its place."""
        self._slot: WorkerSlot | None = None
        """Set once the worker has started."""

    async def run(self, stop: asyncio.Event) -> int:
        """Start everything, serve until `stop` is set or a part ends, stop everything; the exit code."""
        # A closed terminal stops dev like any other signal.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            settings = await self._prepare(stack)
            ingest_settings, worker_settings = self._with_ports(settings)
            ingest = IngestNode(ingest_settings, spool_may_vanish=True)

            def make_worker() -> WorkerNode:
                return WorkerNode(worker_settings, handler_modules=[dev_handler], counters=self._counters)

            reloader = self._reloader(settings)
            worker = make_worker() if reloader is None else reloader.load(make_worker)
            view = await self._view(stack, settings)
            await worker.start()
            slot = self._slot = WorkerSlot(worker)
            stack.push_async_callback(slot.stop)
            await ingest.start()
            stack.push_async_callback(ingest.stop)
            if settings.admin_port is None:
                self._print_moved_port("the admin port of ingest", ADMIN_PORTS["ingest"], ingest.admin_port)
                self._print_moved_port(
                    "the admin port of the worker", ADMIN_PORTS["worker"], worker.admin.port
                )
            await _until_ready(ingest.admin_url, worker.admin_url)
            account = find_account(settings, None, None)
            is_found = stack.enter_context(announced(ingest.url))
            self._greet(settings, account, ingest, worker, is_found=is_found)
            reloading = None if reloader is None else asyncio.create_task(reloader.run(slot, make_worker))
            target = _target(settings, account, ingest.url)
            return await self._serve(stop, settings, target, slot, view, reloading)

    def _reloader(self, settings: Settings) -> "Reloader | None":
        if not self._reload:
            return None
        from maskline.console.reload.reloader import Reloader  # noqa: PLC0415  it needs an extra

        return Reloader(settings.handlers, self._print)

    async def _serve(
        self,
        stop: asyncio.Event,
        settings: Settings,
        target: Target,
        slot: WorkerSlot,
        view: LiveView,
        reloading: asyncio.Task[None] | None,
    ) -> int:
        """Serve until `stop` is set, or until a part ends that must not; the exit code."""
        stopped = asyncio.create_task(stop.wait())
        failed = asyncio.create_task(slot.failed())
        watched: set[asyncio.Task[Any]] = {stopped, failed}
        if reloading is not None:
            watched.add(reloading)
        server_ended: asyncio.Task[int] | None = None
        if self._embedded is not None:
            server_ended = asyncio.create_task(self._embedded.wait())
            watched.add(server_ended)
        demo: asyncio.Task[bool] | None = None
        if self._demo:
            demo = asyncio.create_task(Demo(settings, target).play(stop, self._print))
            watched.add(demo)
        try:
            while True:
                done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if failed in done:
                    return 1  # the log says which part of it
                if server_ended is not None and server_ended in done:
                    assert self._embedded is not None  # noqa: S101  server_ended is its task
                    self._print(f"the embedded server has ended: {self._embedded.last_log_line()}")
                    return 1
                if stopped in done:
                    return 0
                if reloading is not None and reloading in done:
                    reloading.result()  # raises why there is no worker any more
                    return 1
                assert demo is not None  # noqa: S101  the only other task
                good = demo.result()
                await view.written()
                if self._exit_after:
                    view.summarise()
                    return 0 if good else 1
                self._print("the nodes go on: Ctrl-C ends them")
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    # Setting up

    async def _prepare(self, stack: contextlib.AsyncExitStack) -> Settings:
        """The settings with a server and an account, which are made if none are set."""
        settings, sources = self._reading
        changes: dict[str, Any] = {}
        if not settings.redis_url:
            self._embedded = EmbeddedServer(STATE_DIRECTORY / "valkey")
            await self._embedded.start()
            stack.push_async_callback(self._embedded.stop)
            changes["redis_url"] = self._embedded.url
            # Handler modules that keep something in Redis read the setting themselves.
            os.environ["MASKLINE_REDIS_URL"] = self._embedded.url
            stack.callback(os.environ.pop, "MASKLINE_REDIS_URL", None)
        if not settings.auth_tokens:
            account = throw_away_account()
            changes["auth_tokens"] = ((account.auth_id, account.auth_token),)
        if sources["spool_dir"] == "default":
            changes["spool_dir"] = STATE_DIRECTORY / "spool"
        if sources["handlers"] == "default":
            changes["handlers"] = ()  # the live view shows the lines of maskline.handlers.log
        return msgspec.structs.replace(settings, **changes)

    def _with_ports(self, settings: Settings) -> tuple[Settings, Settings]:
        """The settings of ingest and of the worker: with an admin port each, and a free port for callbacks if none is
        set.
        """
        port = settings.port
        if self._reading.sources["port"] == "default":
            port = self._free_port(settings.host, port)
        replace = msgspec.structs.replace
        # If no admin port is set, each node takes the next free one by itself.
        worker_port = settings.admin_port + 1 if settings.admin_port else settings.admin_port
        return replace(settings, port=port), replace(settings, port=port, admin_port=worker_port)

    def _free_port(self, hosts: str, wanted: int) -> int:
        for port in range(wanted, wanted + PORTS_TRIED):
            if is_free(hosts, port):
                self._print_moved_port("MASKLINE_PORT", wanted, port)
                return port
        return wanted  # the node then reports why it cannot listen there

    def _print_moved_port(self, what: str, wanted: int, port: int) -> None:
        if port != wanted:
            self._print(f"{what}: {wanted} is taken, so it is {port}")

    async def _view(self, stack: contextlib.AsyncExitStack, settings: Settings) -> LiveView:
        """Start the live view, which writes until everything else has stopped."""
        endpoint = RedisEndpoint(settings)
        if endpoint.is_cluster:
            raise ConfigError("MASKLINE_REDIS_URL: maskline dev works with one server, not with a cluster")
        try:
            connection = await endpoint.connect("maskline-dev")
        except RedisUnavailableError as error:
            raise ConfigError(f"MASKLINE_REDIS_URL: {error}") from None
        stack.callback(connection.close)
        arrivals = Arrivals(connection, Keys(settings.namespace, settings.group), settings.partitions)
        await arrivals.start()
        view = LiveView(self._console, arrivals, lambda: self._counts(arrivals))
        tasks = [asyncio.create_task(arrivals.run()), asyncio.create_task(view.run())]

        async def end() -> None:
            view.summarise()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        stack.push_async_callback(end)
        stack.callback(dev_handler.listen(view.show))
        return view

    def _counts(self, arrivals: Arrivals) -> Counts:
        if self._slot is None:
            return Counts(*[0] * len(Counts._fields))
        counters, released = self._counters, self._counters.released
        return Counts(
            arrived=arrivals.total,
            handled=counters.handled[dev_handler.NAME],
            in_order=released["in_order"],
            after_gap=released["after_gap"],
            late=released["late"],
            unsequenced=released["unsequenced"],
            duplicates=counters.duplicates,
            held=sum(partition.held for partition in self._slot.worker.partitions),
            dead=sum(counters.dead.values()),
        )

    # Output

    def _print(self, line: str = "") -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _greet(
        self, settings: Settings, account: Account, ingest: IngestNode, worker: WorkerNode, *, is_found: bool
    ) -> None:
        """`is_found`: commands in this directory find the URL by themselves."""
        server = (
            f"embedded, data in {STATE_DIRECTORY}/valkey"
            if self._embedded
            else RedisEndpoint(settings).address
        )
        callback_url = _public(settings, ingest.url)
        self._print(f"callbacks   {callback_url}   (account {account.auth_id})")
        self._print(f"ingest      {ingest.admin_url}/readyz  {ingest.admin_url}/metrics")
        self._print(f"worker      {worker.admin_url}/readyz  {worker.admin_url}/metrics")
        self._print(f"redis       {server}")
        if settings.handlers:
            self._print(f"handlers    {', '.join(settings.handlers)}")
        self._print()
        self._print("Send one event by hand:")
        url = None if is_found else ingest.url
        self._print("  " + trigger_line(url))
        self._print("  " + curl_line(_target(settings, account, ingest.url)))
        self._print("Play sessions from another terminal in this directory:")
        self._print("  " + simulate_line(url))
        self._print()


def curl_line(target: Target) -> str:
    """A command line that sends a signed callback to `target`. Sent again, the callback is a duplicate."""
    pairs = [
        ("EventName", "SessionSecondPartyAnswer"),
        ("SessionUUID", str(uuid.uuid4())),
        ("SequenceNumber", "1"),
        ("From", "+14155550123"),
        ("To", "+14155550199"),
    ]
    nonce = uuid.uuid4().hex
    signature = target.sign("POST", Parameters([], pairs, None), nonce)
    return shlex.join(
        [
            "curl",
            "-i",
            str(target.url),
            "-H",
            f"X-Plivo-Signature-V3: {signature}",
            "-H",
            f"X-Plivo-Signature-V3-Nonce: {nonce}",
            "-d",
            urlencode(pairs),
        ]
    )


def trigger_line(url: str | None) -> str:
    """A command line that sends a signed callback to `url`, or to dev, from the same directory, and follows it."""
    return _command_line(url, "trigger", "SessionSecondPartyHangup")


def simulate_line(url: str | None) -> str:
    """A command line that plays sessions to `url`, or to dev, from the same directory."""
    return _command_line(url, "simulate")


def _command_line(url: str | None, *arguments: str) -> str:
    command = "maskline" if shutil.which("maskline") else sys.argv[0]
    with contextlib.suppress(ValueError):
        command = str(Path(command).relative_to(Path.cwd()))
    words = [command, *arguments]
    if url is not None:
        words += ["--url", url]
    return shlex.join(words)


def _public(settings: Settings, url: str) -> str:
    return settings.public_url + urlsplit(url).path if settings.public_url else url


def _target(settings: Settings, account: Account, url: str) -> Target:
    return Target(url, account.auth_token, signed_url=_public(settings, url))


async def _until_ready(*admin_urls: str) -> None:
    """Wait until the nodes are ready, but not for ever: a Redis that is down does not keep dev from starting."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as client:
            for url in admin_urls:
                while True:
                    async with client.get(f"{url}/readyz") as response:
                        if response.status == 200:
                            break
                    await asyncio.sleep(READY_POLL_S)
