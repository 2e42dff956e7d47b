"""`python -m maskline.worker`: a worker, or several processes of one."""

import argparse
import asyncio
import gc
from collections.abc import Awaitable
from typing import Final

from maskline.runtime.cli import CommandParser
from maskline.runtime.logs import configure_logging, unblock_standard_streams
from maskline.runtime.process import supervisor_pipe
from maskline.runtime.process.run import EXIT_PROBLEM, run, run_command
from maskline.runtime.process.supervisor import SILENT_KILL_S, supervise
from maskline.schemas.settings import load_settings
from maskline.worker.node import WorkerNode

GC_YOUNG_MAX: Final = 50_000
"""Objects made and not dropped before the garbage collector runs: some ten milliseconds' work. A worker makes next to
no cycles, and with Python's 700 it visited every batch of replies several times: a tenth of a busy worker."""

SILENT_LEASES: Final = 2
"""A worker whose event loop stands still is killed after so many lease times at the earliest: a long lease is set where
handlers block the loop."""


def main(argv: list[str]) -> int:
    """Run a worker as the arguments and MASKLINE_ settings say; return the exit code. Raises ConfigError."""
    arguments = _parser().parse_args(argv)
    settings = load_settings()
    configure_logging(settings)
    unblock_standard_streams()
    if arguments.index is None and arguments.processes != 1:
        return supervise(
            ["maskline.worker"],
            arguments.processes,
            stop_timeout_ms=settings.stop_timeout_ms,
            silent_kill_s=max(SILENT_KILL_S, SILENT_LEASES * settings.lease_ttl_ms / 1000),
        )

    def serve(stop: asyncio.Event) -> Awaitable[int]:
        # Before the loop turns: handler modules are imported here, which may take long.
        return _serve(WorkerNode(settings, index=arguments.index or 0), stop)

    return run(serve, stop_timeout_ms=settings.stop_timeout_ms)


async def _serve(node: WorkerNode, stop: asyncio.Event) -> int:
    await node.start()
    supervisor_pipe.report_up()
    gc.set_threshold(GC_YOUNG_MAX)
    gc.freeze()  # the objects made until now stay
    failed = asyncio.create_task(node.failed())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((failed, stopped), return_when=asyncio.FIRST_COMPLETED)
        return 0 if stop.is_set() else EXIT_PROBLEM
    finally:
        failed.cancel()
        stopped.cancel()
        await node.stop()


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline worker", description="Put each session's events in order and run the handlers."
    )
    parser.add_argument("--processes", type=int, default=1, help="worker processes to run (default 1)")
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_command(main)
