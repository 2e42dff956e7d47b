"""`maskline replay`: runs kept callbacks again; lists and stops replays and discards."""

from collections.abc import Callable
from typing import Final

from maskline.console.jobs.follow import NAMES
from maskline.console.jobs.kept_callbacks import look_at_callbacks
from maskline.console.jobs.records import read_jobs, read_totals, stop_job
from maskline.console.jobs.report import JobRow, print_jobs, row_of
from maskline.console.jobs.start import Request, add_job_arguments, run
from maskline.console.output import print_json
from maskline.console.redis_reader import RedisReader, run_with_reader
from maskline.console.selectors import add_callback_selectors, callback_selection
from maskline.runtime.cli import CommandParser


def main(argv: list[str]) -> int:
    """Run `maskline replay` with these arguments; the exit code."""
    command = _COMMANDS.get(argv[0]) if argv else None
    return _replay(argv) if command is None else command(argv[1:])


def _replay(argv: list[str]) -> int:
    parser = CommandParser(
        prog="maskline replay",
        usage="maskline replay (--session UUID | --since TIME) [options]\n"
        "       maskline replay --from-archive DIR [options]\n"
        "       maskline replay list [--json]\n"
        "       maskline replay stop ID [--json]",
        description="Run callbacks that are kept in the streams again, in order: for their handlers they have "
        "ctx.replayed and the same idempotency keys. `list` shows replays and discards, `stop` stops one.",
    )
    add_callback_selectors(parser)
    parser.add_argument(
        "--from-archive",
        metavar="DIR",
        help="those of this archive of maskline.handlers.archive, a folder or a URL as s3://bucket/prefix, instead",
    )
    add_job_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.from_archive is not None:
        from maskline.console.jobs.archive.command import replay_archive  # noqa: PLC0415 - needs the extra

        return replay_archive(arguments)
    selection = callback_selection(arguments, "replay")
    request = Request(
        command="replay",
        kind="callbacks",
        selection=selection,
        question="run these again?",
        look=lambda reader: look_at_callbacks(reader, selection),
    )
    return run(request, arguments)


def _list(argv: list[str]) -> int:
    parser = CommandParser(
        prog="maskline replay list",
        description="Replays and discards, the oldest first, and how far they are.",
    )
    parser.add_argument("--json", action="store_true", help="an array of objects")
    arguments = parser.parse_args(argv)

    async def command(reader: RedisReader) -> int:
        jobs = await read_jobs(reader)
        rows = [row_of(*it) for it in zip(jobs, await read_totals(reader, jobs), strict=True)]
        if arguments.json:
            print_json(rows)
        else:
            print_jobs(rows)
        return 0

    return run_with_reader(command)


def _stop(argv: list[str]) -> int:
    parser = CommandParser(
        prog="maskline replay stop",
        description="Have workers begin nothing more of a replay or discard. What they have put into retry queues "
        "by then is still run.",
    )
    parser.add_argument("id", metavar="ID", help="as the list has it")
    parser.add_argument("--json", action="store_true", help="the job as JSON")
    arguments = parser.parse_args(argv)

    async def command(reader: RedisReader) -> int:
        job = await stop_job(reader, arguments.id)
        (totals,) = await read_totals(reader, [job])
        row = row_of(job, totals)
        if arguments.json:
            print_json(row)
        else:
            print(_stopped_line(row))
        return 0

    return run_with_reader(command)


def _stopped_line(row: JobRow) -> str:
    name = NAMES[row.kind]
    if row.ended:
        return f"{name} {row.id} had ended before"
    return f"{name} {row.id} is stopped: workers begin nothing more of it; {row.under_way:,} are under way"


_COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {"list": _list, "stop": _stop}
