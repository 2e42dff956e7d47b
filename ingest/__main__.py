"""`python -m maskline.ingest`: an ingest node of one process, or of several that share its port."""

import argparse
import asyncio
from contextlib import ExitStack
from typing import Final

from maskline.ingest.node import IngestNode, cannot_listen
from maskline.runtime.cli import CommandParser
from maskline.runtime.logs import configure_logging, unblock_standard_streams
from maskline.runtime.net.binding import ListenError, bind
from maskline.runtime.process import supervisor_pipe
from maskline.runtime.process.run import run, run_command
from maskline.runtime.process.supervisor import supervise
from maskline.schemas.settings import Settings, load_settings

SILENT_KILL_S: Final = 15.0
"""How long a child's event loop may stand still before it is killed. No code of the user's runs on it, and the kernel
gives it connections all the same: their callbacks are lost once Plivo's timeout is over."""


def main(argv: list[str]) -> int:
    """Run ingest as the arguments and the MASKLINE_ settings say. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    settings = load_settings(host=arguments.host, port=arguments.port)
    configure_logging(settings)
    unblock_standard_streams()
    if arguments.index is None and arguments.processes != 1:
        return _supervise(settings, arguments.processes)
    index = arguments.index or 0

    async def serve(stop: asyncio.Event) -> int:
        node = IngestNode(settings, index=index, reuse_port=arguments.index is not None)
        await node.start()
        supervisor_pipe.report_up()
        try:
            await stop.wait()
        finally:
            await node.stop()
        return 0

    return run(serve, stop_timeout_ms=settings.stop_delay_ms + settings.stop_timeout_ms)


def _supervise(settings: Settings, processes: int) -> int:
    """Run child processes, each of which binds the port itself. Returns the exit code.

    The port is reserved here, so that a port that is taken stops the start, and all children share the same one.
    """
    with ExitStack() as held:
        try:
            port = reserve_port(settings.host, settings.port, held)
        except ListenError as error:
            raise cannot_listen(error) from None
        argv = ["maskline.ingest", "--host", settings.host, "--port", str(port)]
        stop_timeout_ms = settings.stop_delay_ms + settings.stop_timeout_ms
        return supervise(argv, processes, stop_timeout_ms=stop_timeout_ms, silent_kill_s=SILENT_KILL_S)


def reserve_port(hosts: str, port: int, held: ExitStack) -> int:
    """Bind the port on each of the hosts' addresses without listening: that takes no connections, but keeps the port.

    Returns the port, which is the kernel's choice if it was 0. Raises ListenError where it is taken.
    """
    holders = [held.enter_context(sock) for sock in bind(hosts, port, reuse_port=True)]
    return int(holders[0].getsockname()[1])


def _parser() -> CommandParser:
    parser = CommandParser(prog="maskline ingest", description="Take Plivo's callbacks in.")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the port (default 1)")
    parser.add_argument("--host", help="addresses or names to listen on (MASKLINE_HOST)")
    parser.add_argument("--port", help="port to listen on (MASKLINE_PORT)")
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_command(main)
