"""`python -m ingest`: an ingest node, or several processes that share its port."""

import argparse
import asyncio
import socket

from ingest.node import IngestNode, cannot_listen
from runtime.arguments import Parser
from runtime.logs import configure_logging
from runtime.process import cli, run, supervise
from schemas.settings import Settings, load_settings


def main(argv: list[str]) -> int:
    """Run ingest as the arguments and MASKLINE_ settings say; the exit code."""
    arguments = _parser().parse_args(argv)
    settings = load_settings(host=arguments.host, port=arguments.port)
    configure_logging(settings)
    if arguments.index is None and arguments.processes != 1:
        return _several(settings, arguments.processes)
    index = arguments.index or 0

    async def serve(stop: asyncio.Event) -> int:
        node = IngestNode(settings, index=index, reuse_port=arguments.index is not None)
        await node.start()
        try:
            await stop.wait()
        finally:
            await node.stop()
        return 0

    return run(serve, stop_timeout_ms=settings.stop_timeout_ms)


def _several(settings: Settings, processes: int) -> int:
    """The processes bind the port each for itself; here it is made sure that it can be had, and is one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # Bound and never listening: it takes no connection, but keeps a port that the kernel chose.
            held.bind((settings.host, settings.port))
        except OSError as error:
            raise cannot_listen(settings, error) from None
        port = held.getsockname()[1]
        argv = ["ingest", "--host", settings.host, "--port", str(port)]
        return supervise(argv, processes, stop_timeout_ms=settings.stop_timeout_ms)


def _parser() -> Parser:
    parser = Parser(prog="maskline ingest", description="Take Plivo's callbacks in.")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the port (default 1)")
    parser.add_argument("--host", help="address to listen on (MASKLINE_HOST)")
    parser.add_argument("--port", help="port to listen on (MASKLINE_PORT)")
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    cli(main)
