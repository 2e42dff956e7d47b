"""`make chaos`: traffic, a nemesis, and in the end the question whether every promise was kept.

    python tests/chaos/run.py [--duration-s 300] [--seed N] [--rate N] [--json] [--keep DIRECTORY]

or DURATION_S, SEED and RATE in the environment. Exit code 0 if every promise was kept; 1 if not, with the line that
runs it again and the directory of logs and history; 2 for wrong arguments; 130 where it was interrupted, and nothing is
decided. The seed fixes the callbacks and the faults; what meets what is up to the machine, so a failing seed may take a
few runs.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from chaos_handlers import HANDLERS
from chaos_report import report, show
from checker import check
from downstream import Downstream, downstream
from drain import Drain, dead_letters, waiting
from fault_plan import Outage, outages, plan
from history import (
    HANDLERS_FILE,
    RUNNER_FILE,
    Fault,
    Leftover,
    Said,
    Tail,
    Terms,
    Writer,
    read,
)
from nemesis import Nemesis
from operations import operations
from operators import Operators
from proxy import fixed_port
from rich.console import Console
from stage import GAP_TIMEOUT_MS, Stage, open_stage
from traffic import Traffic

from maskline.schemas.spool_notices import read_notice

DURATION_S, RATE = 300.0, 400.0
SEED_MAX = 999_999
WORKERS, INGESTS, PARTITIONS = 3, 2, 16
LEASE_S = 1.5
DRAIN_MAX_S = 90.0
"""After the last fault and the last answer. Whatever is not handled then counts as lost."""
STALL_PART = 3
"""A server that is silent for such a part of a lease may cost one: two renewals are missed."""
WATCH_S = 0.05
MENDED_FILE = "mended"
PROGRESS_S, PLAIN_PROGRESS_S = 1.0, 10.0
"""Between two progress lines, on a terminal and elsewhere."""


class Options(msgspec.Struct, frozen=True):
    duration_s: float
    seed: int
    rate: float
    lease_s: float
    json: bool
    keep: str


def main(argv: list[str]) -> int:
    options = _options(argv)
    directory = Path(options.keep or tempfile.mkdtemp(prefix="maskline-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=options.json, highlight=False)
    if any(directory.iterdir()):
        # Valkey would remember the callbacks of the run before: with the same seed all would be duplicates.
        console.print(f"--keep {directory}: the directory must be empty", soft_wrap=True)
        return 2
    again = f"make chaos SEED={options.seed} DURATION_S={options.duration_s:g} RATE={options.rate:g}"
    console.print(f"{again}  (logs and history in {directory})", soft_wrap=True)
    if not asyncio.run(_play(options, directory, console)):
        console.print("interrupted: nothing is decided")
        return 130
    history = read(directory)
    verdict = check(history)
    summary = report(
        history,
        verdict,
        seed=options.seed,
        duration_s=options.duration_s,
        rate=options.rate,
        lease_s=options.lease_s,
        directory=str(directory),
    )
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary)).decode() + "\n")
    else:
        show(console, summary, options.lease_s)
    if not verdict.good:
        console.print(f"a promise was broken. Once more: {again}", soft_wrap=True)
        console.print(f"logs and history: {directory}", soft_wrap=True)
        return 1
    if not options.keep:
        shutil.rmtree(directory)
    return 0


def _options(argv: list[str]) -> Options:
    def given(name: str, default: str) -> str:
        return os.environ.get(name) or default

    parser = argparse.ArgumentParser(prog="make chaos", description="Faults against everything, and a judge.")
    parser.add_argument("--duration-s", type=float, default=given("DURATION_S", str(DURATION_S)))
    parser.add_argument(
        "--seed", type=int, default=given("SEED", str(random.SystemRandom().randint(1, SEED_MAX)))
    )
    parser.add_argument(
        "--rate", type=float, default=given("RATE", str(RATE)), help="callbacks/s (%(default)s)"
    )
    parser.add_argument("--lease-s", type=float, default=LEASE_S)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--keep", default="", metavar="DIRECTORY", help="for logs and history, kept")
    it = parser.parse_args(argv)
    return Options(it.duration_s, it.seed, it.rate, it.lease_s, it.json, it.keep)


async def _play(options: Options, directory: Path, console: Console) -> bool:
    """The run, up to the history; False where it was interrupted."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    writer = Writer(directory / RUNNER_FILE)
    writer.write(
        Terms(HANDLERS, options.lease_s, PARTITIONS, gap_timeout_s=GAP_TIMEOUT_MS / 1000, replays_all=True)
    )
    planned = plan(
        options.seed, options.duration_s, workers=WORKERS, ingests=INGESTS, lease_s=options.lease_s
    )
    try:
        async with (
            downstream(fixed_port) as called,
            open_stage(
                directory,
                writer.write,
                workers=WORKERS,
                ingests=INGESTS,
                partitions=PARTITIONS,
                lease_s=options.lease_s,
                handlers={
                    "CHAOS_HANDLERS_FILE": str(directory / HANDLERS_FILE),
                    "CHAOS_MENDED_FILE": str(directory / MENDED_FILE),
                    "CHAOS_DOWNSTREAM_PORT": str(called.port),
                },
            ) as stage,
        ):
            traffic = Traffic(stage.urls, seed=options.seed, rate=options.rate, note=writer.write)
            nemesis = Nemesis(stage, writer.write, lambda name: traffic.last_answer.get(name, 0.0))
            operators = Operators(stage, writer.write, directory / MENDED_FILE, options.seed)
            drain = Drain(
                stage, traffic, Tail(directory / HANDLERS_FILE), operators.discarded, writer.write, stop
            )
            progress = asyncio.create_task(_show_progress(console, options, traffic, nemesis))
            watch = asyncio.create_task(_watch(stage, nemesis, writer, options.lease_s / STALL_PART))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(traffic.play(options.duration_s, stop))
                    group.create_task(nemesis.run(planned, stop))
                    group.create_task(
                        _take_away(called, outages(options.seed, options.duration_s), writer, stop)
                    )
                    group.create_task(operators.run(operations(options.seed, options.duration_s), stop))
                if not stop.is_set():
                    await operators.resume_all()
                await drain.until_accounted("drained")
                await operators.settle(stop)
                await drain.until_accounted("replayed", all_done=True)
            finally:
                progress.cancel()
                watch.cancel()
            if not stop.is_set():
                await asyncio.gather(*(node.terminate() for node in stage.nodes))
                _record_final_state(stage, writer)
    finally:
        writer.close()
    return not stop.is_set()


async def _take_away(called: Downstream, planned: list[Outage], writer: Writer, stop: asyncio.Event) -> None:
    """Let the server that a handler calls go away as planned."""
    start = time.monotonic()
    for outage in planned:
        await _sleep(start + outage.at_s - time.monotonic(), stop)
        if stop.is_set():
            return
        async with called.away(outage.way):
            began = time.monotonic()
            await _sleep(outage.lasts_s, stop)
        writer.write(Fault("away", "downstream", 0, began, time.monotonic()))


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def _watch(stage: Stage, nemesis: Nemesis, writer: Writer, stall_s: float) -> None:
    """Write down when Valkey, or the whole machine, stood still though nobody asked for it: a fault as any other."""
    while True:
        began, asked = time.monotonic(), "redis" in nemesis.now
        while not await asyncio.to_thread(stage.answers):
            asked = asked or "redis" in nemesis.now
            await asyncio.sleep(WATCH_S)
        if time.monotonic() - began > stall_s and not asked and "redis" not in nemesis.now:
            writer.write(Fault("stall", "redis", 0, began, time.monotonic()))
        await asyncio.sleep(WATCH_S)


async def _show_progress(console: Console, options: Options, traffic: Traffic, nemesis: Nemesis) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_S if console.is_terminal else PLAIN_PROGRESS_S)
        faults = ", ".join(f"{kind} {target}" for target, kind in sorted(nemesis.now.items())) or "quiet"
        line = (
            f"{time.monotonic() - began:4.0f} of {options.duration_s:g} s  {traffic.sent:,} sent  "
            f"{len(traffic.answered):,} answered 200  {traffic.under_way} under way  "
            f"{nemesis.injected} faults, {nemesis.kills} kills  now: {faults}"
        )
        console.print(
            f"{line:<{console.width - 1}}", end="\r" if console.is_terminal else "\n", soft_wrap=True
        )


def _record_final_state(stage: Stage, writer: Writer) -> None:
    """Write down what is in Redis at the end."""
    for fact in (*dead_letters(stage), *waiting(stage), *_said(stage)):
        writer.write(fact)
    for number, (pending, lag) in stage.left().items():
        writer.write(Leftover(number, pending, lag))


def _said(stage: Stage) -> list[Said]:
    """The spool notices that are still in Redis: the latest of each partition."""
    ahead_s = time.monotonic() - time.time()
    spools = {f":{node.spool.resolve()}/": node.name for node in stage.ingests if node.spool is not None}
    said: list[Said] = []
    for number in range(stage.partitions):
        for entry_id, fields in stage.client.xrange(stage.keys.spooled(number)):
            notice = read_notice(entry_id, [part for pair in fields.items() for part in pair])
            assert notice is not None
            (node,) = [name for spool, name in spools.items() if spool in notice.node]
            said.append(Said(node, number, notice.at_ms / 1000 + ahead_s, notice.held_ms is not None))
    return said
