"""`maskline simulate`: its arguments, progress display and report."""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maskline.console.arguments import natural, positive, rate, share, span
from maskline.console.simulate.plan import (
    PlannedRequest,
    PlanOptions,
    SessionPlan,
    expectation,
    fit_to_rate,
    interleave,
    plan_sessions,
)
from maskline.console.simulate.player import ANSWER_TIMEOUT_S, Player, Target
from maskline.console.simulate.report import PlanProgress, lines, report
from maskline.console.simulate.sessions import SessionOptions
from maskline.console.target_arguments import add_target_arguments, read_target
from maskline.runtime.cli import CommandParser
from maskline.runtime.process.run import run
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings

DEFAULT_RATE: Final = 100.0
DEFAULT_CONCURRENCY: Final = 32
SEED_MAX: Final = 999_999
"""Of seeds that are drawn, so that they are short enough to be read out."""
PLAIN_PROGRESS_S: Final = 5.0
"""Between two lines of progress if stdout is no terminal."""


def main(argv: list[str]) -> int:
    """Run `maskline simulate` with these arguments; the exit code is 0 if every callback was answered 200."""
    arguments = _parser().parse_args(argv)
    settings = load_settings()
    target = read_target(arguments, settings, "simulate")
    options = fit_to_rate(_options(arguments), arguments.rate)
    with contextlib.ExitStack() as stack:
        expected = stack.enter_context(_open(arguments.expect)) if arguments.expect else None
        return run(lambda stop: _simulate(arguments, target, options, expected, stop))


async def _simulate(
    arguments: argparse.Namespace,
    target: Target,
    options: PlanOptions,
    expected: TextIO | None,
    stop: asyncio.Event,
) -> int:
    def planned(plan: SessionPlan) -> None:
        if expected is not None:
            expected.write(msgspec.json.encode(expectation(plan, options)).decode() + "\n")

    progress = PlanProgress(planned)
    url = str(target.url.with_user(None))  # which removes the password as well
    if not arguments.json:
        for line in _headline(url, options, arguments.rate):
            print(line, flush=True)
    with _progress_display(options.sessions, progress, quiet=arguments.json) as advance:

        def sent(send: PlannedRequest) -> None:
            progress.sent(send)
            advance()

        player = Player(
            target,
            rate=arguments.rate,
            concurrency=arguments.concurrency,
            answer_timeout_s=arguments.timeout,
            on_sent=sent,
        )
        tally = await player.play(interleave(progress.record(plan_sessions(options)), options), stop)
    summary = report(url, options, progress, tally)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        for line in lines(summary):
            print(line)
        if not tally.answers and tally.unanswered:
            print(f"nobody answered: is an ingest node listening at {url}?")
    return 0 if tally.all_taken else 1


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline simulate",
        description="Play simulated masking sessions, signed as Plivo signs, against a URL. "
        "Exit code 0 if every callback was answered 200.",
    )
    add_target_arguments(parser)
    _add_session_arguments(parser)
    _add_disturbance_arguments(parser)
    _add_request_arguments(parser)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="the report as JSON")
    shown.add_argument(
        "--expect", metavar="FILE", help="write what a handler should see of each session, as JSON lines"
    )
    return parser


def _add_session_arguments(parser: argparse.ArgumentParser) -> None:
    sessions = parser.add_argument_group("what happens")
    sessions.add_argument("--sessions", type=positive, default=20, metavar="N", help="(%(default)s)")
    sessions.add_argument("--calls", type=span, default=(1, 3), metavar="N|N-M", help="a session (1-3)")
    sessions.add_argument("--first-sequence", type=natural, default=1, metavar="N", help="(%(default)s)")
    sessions.add_argument(
        "--recording-sequence",
        choices=("own", "shared"),
        default="own",
        help="do recording events count apart or with the others (%(default)s)",
    )
    sessions.add_argument("--restart-numbering", action="store_true", help="number each call from the start")
    sessions.add_argument(
        "--vocabulary", choices=("old", "new", "both"), default="both", help="of events (%(default)s)"
    )
    sessions.add_argument(
        "--seed",
        type=natural,
        metavar="N",
        help="same seed, same bytes: a server that had them takes them as duplicates (drawn, and shown)",
    )


def _add_disturbance_arguments(parser: argparse.ArgumentParser) -> None:
    way = parser.add_argument_group("what goes wrong on the way (a share: 0.1 or 10%)")
    way.add_argument("--shuffle", type=share, default=0.3, metavar="SHARE", help="come late (%(default)s)")
    way.add_argument(
        "--shuffle-window", type=natural, default=4, metavar="N", help="by up to N callbacks (%(default)s)"
    )
    way.add_argument("--duplicates", type=share, default=0.1, metavar="SHARE", help="(%(default)s)")
    way.add_argument("--losses", type=share, default=0.0, metavar="SHARE", help="never sent (%(default)s)")


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    requests = parser.add_argument_group("how it is sent")
    requests.add_argument(
        "--rate", type=rate, default=DEFAULT_RATE, metavar="N", help="callbacks/s, 0: no pause (%(default)g)"
    )
    requests.add_argument(
        "--concurrency", type=positive, default=DEFAULT_CONCURRENCY, metavar="N", help="(%(default)s)"
    )
    requests.add_argument(
        "--at-once", type=positive, default=16, metavar="N", help="sessions under way at once (%(default)s)"
    )
    requests.add_argument("--get", type=share, default=0.1, metavar="SHARE", help="by GET (%(default)s)")
    requests.add_argument(
        "--json-bodies", type=share, default=0.05, metavar="SHARE", help="as JSON (%(default)s)"
    )
    requests.add_argument(
        "--timeout", type=positive, default=int(ANSWER_TIMEOUT_S), metavar="S", help="(%(default)s s)"
    )


def _options(arguments: argparse.Namespace) -> PlanOptions:
    seed = arguments.seed
    if seed is None:
        seed = random.SystemRandom().randint(1, SEED_MAX)
    return PlanOptions(
        seed=seed,
        sessions=arguments.sessions,
        shuffle=arguments.shuffle,
        window=arguments.shuffle_window,
        duplicates=arguments.duplicates,
        losses=arguments.losses,
        get=arguments.get,
        json_bodies=arguments.json_bodies,
        at_once=arguments.at_once,
        session=SessionOptions(
            calls_min=arguments.calls[0],
            calls_max=arguments.calls[1],
            first_sequence=arguments.first_sequence,
            recording_sequence=arguments.recording_sequence,
            restart_numbering=arguments.restart_numbering,
            vocabulary=arguments.vocabulary,
        ),
    )


def _open(path: str) -> TextIO:
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"simulate: --expect {path} cannot be written: {error.strerror}") from None


def _headline(url: str, options: PlanOptions, per_second: float) -> Iterator[str]:
    pace = f"{per_second:g} callbacks/s" if per_second else "as fast as possible"
    yield f"playing {options.sessions:,} sessions at {url}, {pace}, --seed {options.seed}"
    yield (
        f"{options.shuffle:.0%} come up to {options.window} callbacks late, {options.duplicates:.0%} twice, "
        f"{options.losses:.0%} never"
    )


@contextlib.contextmanager
def _progress_display(sessions: int, progress: PlanProgress, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Shows a bar on a terminal, a line now and then elsewhere. Yields a function to call after each request."""
    if quiet:
        yield lambda: None
        return
    if sys.stdout.isatty():
        columns: list[Any] = [
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("sessions"),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=Console(), transient=True) as bar:
            task = bar.add_task("", total=sessions)
            yield lambda: bar.update(task, completed=progress.sessions_done)
        return
    shown_at = time.monotonic()

    def advance() -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= PLAIN_PROGRESS_S:
            shown_at = time.monotonic()
            print(f"{progress.sessions_done:,} of {sessions:,} sessions", flush=True)

    yield advance
