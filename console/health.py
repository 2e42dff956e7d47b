"""`maskline health [ingest|worker]`: the health of the processes of this machine or container, for probes and people.

Which processes: those that left a note of their port (`runtime.admin.port_notes`) and have the same settings; without a
command's name, those of both commands. All of them must be healthy. If there is no note, those that listen where the
settings say: at MASKLINE_ADMIN_PORT, or at the default ports of both commands. There, one of the ports may be free or
another program's (Prometheus has 9090 too), as long as a process at the other is healthy.

The command must answer even if a process does not, and cost little, as it runs every few seconds. So it uses plain
sockets, never a proxy, with one deadline for all, and loads none of maskline but the settings.
Exit codes: 0 healthy, 1 not, 2 wrong settings.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from maskline.runtime.admin.port_notes import Note, read_notes
from maskline.runtime.cli import CommandParser
from maskline.schemas.errors import ConfigError
from maskline.schemas.hosts import ANY_IPV4, ANY_IPV6, LOOPBACKS, read_hosts, with_port
from maskline.schemas.settings import ADMIN_PORTS, Settings, load_settings

TIMEOUT_S: Final = 3.0
"""Less than HEALTHCHECK allows in the Dockerfile, and much more than a healthy process takes."""
TIMEOUT_MAX_S: Final = 60.0
CONNECT_MAX_S: Final = 1.0
"""For one address. The kernel accepts the connection even if the process hangs, unless its queue is full."""
ANSWER_MAX_BYTES: Final = 1 << 20
"""Bound of an answer; `/readyz` with a large cluster has a few kilobytes."""
NAMED_MAX: Final = 4
"""Processes that the line names, and reasons of each; `--json` has them all."""

SERVER_HEADER: Final = b"\r\nserver: maskline\r\n"

Address = tuple[str, int]


class ProbedProcess(NamedTuple):
    """A process that runs, or should run."""

    command: str
    addresses: tuple[Address, ...]
    """The first that accepts a connection is asked."""
    pid: int | None
    """None without a note, so the process may not exist."""


class ProbeResult(NamedTuple):
    """The health of one process."""

    process: ProbedProcess
    address: str
    status: int | None
    """HTTP status; None without an answer."""
    reason: str
    """Why it is not healthy; empty if it is."""
    details: dict[str, Any] = {}  # noqa: RUF012 - never changed
    absent: bool = False
    """Nobody listens there, or another program."""

    @property
    def ok(self) -> bool:
        """Whether the process is healthy."""
        return not self.reason


def run_and_exit(argv: list[str]) -> NoReturn:
    """Run the command and exit as `runtime.process.run.run_command` does, without its imports."""
    try:
        code = main(argv)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"maskline: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Run `maskline health` with these arguments; the exit code. Raises ConfigError."""
    arguments = _parser().parse_args(argv)
    settings = load_settings()
    path = "/readyz" if arguments.ready else "/healthz"
    deadline = monotonic() + arguments.timeout
    processes = find_processes(settings, arguments.command, read_notes())
    results = probe(processes, path, deadline, arguments.timeout)
    ok = all_healthy(results)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(_report(ok, path, results))).decode())
    else:
        print(summary_line(ok, results, ready=arguments.ready))
    return 0 if ok else 1


def find_processes(settings: Settings, command: str | None, notes: Sequence[Note]) -> list[ProbedProcess]:
    """The processes to probe: those of `notes`, else those that the settings suggest. Pure.

    A suggested port is left out if a note says that it is another process's.
    """
    commands = list(ADMIN_PORTS) if command is None else [command]
    noted = [
        ProbedProcess(note.command, note.addresses, note.pid)
        for name in commands
        for note in notes
        if note.is_of(name, settings)
    ]
    if noted or settings.admin_port == 0:
        return noted
    others = {port for note in notes for _, port in note.addresses}
    return [process for process in _guessed(settings, commands) if process.addresses[0][1] not in others]


def _guessed(settings: Settings, commands: Sequence[str]) -> list[ProbedProcess]:
    """Processes that may run without a note."""
    hosts = dict.fromkeys(host for name in read_hosts(settings.admin_host) for host in _to_dial(name))
    if settings.admin_port is not None:
        # The same port for either command.
        addresses = tuple((host, settings.admin_port) for host in hosts)
        return [ProbedProcess(" or ".join(commands), addresses, None)]
    return [
        ProbedProcess(name, tuple((host, ADMIN_PORTS[name]) for host in hosts), None) for name in commands
    ]


def _to_dial(host: str) -> tuple[str, ...]:
    if host == ANY_IPV6:
        return LOOPBACKS[ANY_IPV6], LOOPBACKS[ANY_IPV4]
    return (LOOPBACKS.get(host, host),)


def all_healthy(results: Sequence[ProbeResult]) -> bool:
    """Whether all processes that exist are healthy, and at least one exists. Pure."""
    existing = [result for result in results if result.process.pid is not None or not result.absent]
    return bool(existing) and all(result.ok for result in existing)


def summary_line(ok: bool, results: Sequence[ProbeResult], *, ready: bool) -> str:
    """The result in one line for a person. Pure."""
    word = "ready" if ready else "healthy"
    if not results:
        return f"not {word}: no process with these settings has left a note of its port here"
    # Of suggested processes only those that exist are named, unless none exists.
    named_results = [
        result for result in results if result.process.pid is not None or not result.absent
    ] or results
    named_results = [result for result in named_results if result.ok == ok]
    named = [
        f"{result.process.command} at {result.address}{'' if ok else f' {result.reason}'}"
        for result in named_results[:NAMED_MAX]
    ]
    more = f", and {len(named_results) - NAMED_MAX} more" if len(named_results) > NAMED_MAX else ""
    return f"{'' if ok else 'not '}{word}: {(', ' if ok else '; ').join(named)}{more}"


# Requests


class _SentProbe(NamedTuple):
    process: ProbedProcess
    address: str
    sock: socket.socket | None
    error: str


def probe(
    processes: Sequence[ProbedProcess], path: str, deadline: float, timeout_s: float
) -> list[ProbeResult]:
    """Send the request to each, then read the answers, so that all of them have the time until the deadline."""
    sent = [_send(process, path, deadline) for process in processes]
    results = []
    for process, address, sock, error_text in sent:
        if sock is None:
            results.append(ProbeResult(process, address, None, error_text, absent=True))
            continue
        with sock:
            results.append(_result_of(process, address, _receive(sock, deadline), timeout_s))
    return results


def _send(process: ProbedProcess, path: str, deadline: float) -> _SentProbe:
    """Connect to the first address that accepts, and send the request."""
    error_text, shown = "cannot be reached", [with_port(*address) for address in process.addresses]
    for host, port in process.addresses:
        for family, _, _, _, where in _resolve(host, port, deadline):
            with contextlib.ExitStack() as undo:
                try:
                    sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    sock.settimeout(_left(deadline, CONNECT_MAX_S))
                    sock.connect(where)
                    sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {_host_header(host, port)}\r\n\r\n".encode())
                except OSError as error:
                    error_text = f"cannot be reached: {error.strerror or error}"
                    continue
                undo.pop_all()
                return _SentProbe(process, with_port(host, port), sock, "")
    return _SentProbe(process, " or ".join(shown), None, error_text)


def _host_header(host: str, port: int) -> str:
    return with_port(host.partition("%")[0], port)


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """The addresses of a name, as getaddrinfo returns them. A resolver may block, so it runs in a thread with a
    deadline.
    """
    found: list[Any] = []

    def resolve(flags: int = 0) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))

    resolve(socket.AI_NUMERICHOST)
    if not found:
        thread = threading.Thread(target=resolve, daemon=True)
        thread.start()
        thread.join(_left(deadline, TIMEOUT_MAX_S))
    return list(found)


def _receive(sock: socket.socket, deadline: float) -> bytes | None:
    """The whole answer; None if it did not end in time."""
    data = b""
    try:
        while len(data) < ANSWER_MAX_BYTES:
            sock.settimeout(_left(deadline, TIMEOUT_MAX_S))
            part = sock.recv(65_536)
            if not part:
                return data
            data += part
    except TimeoutError:
        return None
    except OSError:
        return b""
    return data


def _left(deadline: float, most_s: float) -> float:
    """Seconds until the deadline, at most `most_s`; never 0, which would not even read what has arrived."""
    return min(most_s, max(0.01, deadline - monotonic()))


def _result_of(process: ProbedProcess, address: str, data: bytes | None, timeout_s: float) -> ProbeResult:
    """The result that an answer means; None for `data` is an answer that did not end in time. Pure."""
    if data is None:
        return ProbeResult(process, address, None, f"has not answered within {timeout_s:g} s")
    if not data:
        return ProbeResult(process, address, None, "has closed the connection without an answer", absent=True)
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if SERVER_HEADER not in head.lower() + b"\r\n" or len(words) < 2 or not words[1].isdigit():
        return ProbeResult(process, address, None, "is not maskline's", absent=True)
    details: Any = None
    with contextlib.suppress(msgspec.MsgspecError):
        details = msgspec.json.decode(body)
    if not isinstance(details, dict):
        return ProbeResult(process, address, int(words[1]), "has answered what cannot be read")
    reason = "" if words[1] == b"200" else " ".join(["answers", words[1].decode(), *_reasons(details)])
    return ProbeResult(process, address, int(words[1]), reason, details)


def _reasons(details: dict[str, Any]) -> list[str]:
    """The errors and reasons that the body names, in brackets, in their order."""
    found: list[str] = []

    def collect(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, key)
        elif name in ("error", "reason") and value:
            found.append(" ".join(str(value).split()))

    if isinstance(redis := details.get("redis"), str) and redis != "up":
        found.append(redis)  # as a worker reports it
    collect(details, "")
    if details.get("stopping"):
        found.insert(0, "it is stopping")
    return [f"({'; '.join(found[:NAMED_MAX])})"] if found else []


def _report(ok: bool, path: str, results: Sequence[ProbeResult]) -> dict[str, Any]:
    processes = [
        {
            "command": result.process.command,
            "pid": result.process.pid,
            "address": result.address,
            "ok": result.ok,
            "status": result.status,
            "reason": result.reason,
            "details": result.details,
        }
        for result in results
    ]
    return {"ok": ok, "path": path, "processes": processes}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline health",
        description="Ask the processes of this machine, or container, that have the same settings how they are. "
        "Exit code 0 if all of them are well, 1 if one is not, or none is there.",
    )
    parser.add_argument("command", nargs="?", choices=list(ADMIN_PORTS), help="only these (default: both)")
    parser.add_argument("--ready", action="store_true", help="ask /readyz rather than /healthz")
    parser.add_argument(
        "--timeout", type=_seconds, default=TIMEOUT_S, metavar="S", help="for all of it (%(default)g s)"
    )
    parser.add_argument("--json", action="store_true", help="print what they answer as JSON")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0.1 <= value <= TIMEOUT_MAX_S:
            return value
    raise argparse.ArgumentTypeError(
        f"must be a number of seconds from 0.1 to {TIMEOUT_MAX_S:g}, not {text!r}"
    )
