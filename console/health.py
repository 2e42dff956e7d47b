"""`maskline health [ingest|worker]`: how the processes of this machine, or container, are. For probes and people.

Which ones: those with a note (runtime.admin.port_notes) that have the same settings; without a command's name both
kinds. All of them must be well. Where there is no note, whoever listens where the settings say: MASKLINE_ADMIN_PORT,
or the default ports of both commands, at which nobody, or something else (Prometheus has 9090 too), may listen as
long as one is well.

It must answer also while the process does not, and cost little, since it is run every few seconds: plain sockets, never
by a proxy, one deadline for all of them, and nothing of ours loaded but the settings.
Exit codes: 0 well, 1 not, 2 wrong settings.
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
"""Less than HEALTHCHECK gives it in the Dockerfile, and much more than a process that is well takes."""
TIMEOUT_MAX_S: Final = 60.0
CONNECT_MAX_S: Final = 1.0
"""Of one address: the kernel takes the connection, whatever its process does, unless its queue is full."""
ANSWER_MAX_BYTES: Final = 1 << 20
"""What `/readyz` says of a large cluster is a few kilobytes."""
NAMED_MAX: Final = 4
"""Processes that the line names, and reasons of one; `--json` has them all."""

OURS: Final = b"\r\nserver: maskline\r\n"

Address = tuple[str, int]


class Target(NamedTuple):
    """A process that is, or should be, there."""

    command: str
    addresses: tuple[Address, ...]
    """The first that can be connected to is asked."""
    pid: int | None
    """None where it is not known to be there: nobody has left a note."""


class Answer(NamedTuple):
    """How one process is."""

    target: Target
    address: str
    status: int | None
    """None without an answer."""
    reason: str
    """Why it is not well; empty where it is."""
    details: dict[str, Any] = {}  # noqa: RUF012 - never changed
    absent: bool = False
    """Nobody listens there, or something that is not ours."""

    @property
    def ok(self) -> bool:
        return not self.reason


def end(argv: list[str]) -> NoReturn:
    """Run the command with `argv` and exit as `runtime.process.run.run_command` would, without its imports."""
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
    arguments = _parser().parse_args(argv)
    settings = load_settings()
    path = "/readyz" if arguments.ready else "/healthz"
    deadline = monotonic() + arguments.timeout
    targets = find(settings, arguments.command, read_notes())
    answers = ask(targets, path, deadline, arguments.timeout)
    ok = verdict(answers)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(_report(ok, path, answers))).decode())
    else:
        print(line(ok, answers, ready=arguments.ready))
    return 0 if ok else 1


def find(settings: Settings, command: str | None, notes: Sequence[Note]) -> list[Target]:
    """Whom to ask: whoever has left a note, else who may be there, unless a note says that it is another. Pure."""
    commands = list(ADMIN_PORTS) if command is None else [command]
    noted = [
        Target(note.command, note.addresses, note.pid)
        for name in commands
        for note in notes
        if note.is_of(name, settings)
    ]
    if noted or settings.admin_port == 0:
        return noted
    others = {port for note in notes for _, port in note.addresses}
    return [target for target in _guessed(settings, commands) if target.addresses[0][1] not in others]


def _guessed(settings: Settings, commands: Sequence[str]) -> list[Target]:
    """Who may be there without a note."""
    hosts = dict.fromkeys(host for name in read_hosts(settings.admin_host) for host in _to_dial(name))
    if settings.admin_port is not None:
        # The same port whichever command it is.
        addresses = tuple((host, settings.admin_port) for host in hosts)
        return [Target(" or ".join(commands), addresses, None)]
    return [Target(name, tuple((host, ADMIN_PORTS[name]) for host in hosts), None) for name in commands]


def _to_dial(host: str) -> tuple[str, ...]:
    if host == ANY_IPV6:
        return LOOPBACKS[ANY_IPV6], LOOPBACKS[ANY_IPV4]
    return (LOOPBACKS.get(host, host),)


def verdict(answers: Sequence[Answer]) -> bool:
    """Whether all is well. Pure."""
    there = [answer for answer in answers if answer.target.pid is not None or not answer.absent]
    return bool(there) and all(answer.ok for answer in there)


def line(ok: bool, answers: Sequence[Answer], *, ready: bool) -> str:
    """What a person reads. Pure."""
    word = "ready" if ready else "healthy"
    if not answers:
        return f"not {word}: no process with these settings has left a note of its port here"
    # Of those that are guessed, only the ones that are there count, unless none is.
    told = [answer for answer in answers if answer.target.pid is not None or not answer.absent] or answers
    told = [answer for answer in told if answer.ok == ok]
    named = [
        f"{answer.target.command} at {answer.address}{'' if ok else f' {answer.reason}'}"
        for answer in told[:NAMED_MAX]
    ]
    more = f", and {len(told) - NAMED_MAX} more" if len(told) > NAMED_MAX else ""
    return f"{'' if ok else 'not '}{word}: {(', ' if ok else '; ').join(named)}{more}"


# Asking


class _Asked(NamedTuple):
    target: Target
    address: str
    sock: socket.socket | None
    trouble: str


def ask(targets: Sequence[Target], path: str, deadline: float, timeout_s: float) -> list[Answer]:
    """Send the request to each, then read the answers, so that all of them have the time until the deadline."""
    asked = [_send(target, path, deadline) for target in targets]
    answers = []
    for target, address, sock, trouble in asked:
        if sock is None:
            answers.append(Answer(target, address, None, trouble, absent=True))
            continue
        with sock:
            answers.append(_answer(target, address, _receive(sock, deadline), timeout_s))
    return answers


def _send(target: Target, path: str, deadline: float) -> _Asked:
    """Connect to the first address that lets us."""
    trouble, shown = "cannot be reached", [with_port(*address) for address in target.addresses]
    for host, port in target.addresses:
        for family, _, _, _, where in _look_up(host, port, deadline):
            with contextlib.ExitStack() as undo:
                try:
                    sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    sock.settimeout(_left(deadline, CONNECT_MAX_S))
                    sock.connect(where)
                    sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {_host_header(host, port)}\r\n\r\n".encode())
                except OSError as error:
                    trouble = f"cannot be reached: {error.strerror or error}"
                    continue
                undo.pop_all()
                return _Asked(target, with_port(host, port), sock, "")
    return _Asked(target, " or ".join(shown), None, trouble)


def _host_header(host: str, port: int) -> str:
    return with_port(host.partition("%")[0], port)


def _look_up(host: str, port: int, deadline: float) -> list[Any]:
    """A name's addresses. A resolver may take its time, so it has a thread, which nobody waits for in the end."""
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
    """All that is answered; None where its end has not come in time."""
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
    """Never 0, which would mean not to wait for what is there already."""
    return min(most_s, max(0.01, deadline - monotonic()))


def _answer(target: Target, address: str, data: bytes | None, timeout_s: float) -> Answer:
    """What an answer means. Pure."""
    if data is None:
        return Answer(target, address, None, f"has not answered within {timeout_s:g} s")
    if not data:
        return Answer(target, address, None, "has closed the connection without an answer", absent=True)
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if OURS not in head.lower() + b"\r\n" or len(words) < 2 or not words[1].isdigit():
        return Answer(target, address, None, "is not maskline's", absent=True)
    details: Any = None
    with contextlib.suppress(msgspec.MsgspecError):
        details = msgspec.json.decode(body)
    if not isinstance(details, dict):
        return Answer(target, address, int(words[1]), "has answered what cannot be read")
    reason = "" if words[1] == b"200" else " ".join(["answers", words[1].decode(), *_reasons(details)])
    return Answer(target, address, int(words[1]), reason, details)


def _reasons(details: dict[str, Any]) -> list[str]:
    """What the body says is wrong, in brackets, in the order in which it stands there."""
    found: list[str] = []

    def look(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, key)
        elif name in ("error", "reason") and value:
            found.append(" ".join(str(value).split()))

    if isinstance(redis := details.get("redis"), str) and redis != "up":
        found.append(redis)  # as a worker has it
    look(details, "")
    if details.get("stopping"):
        found.insert(0, "it is stopping")
    return [f"({'; '.join(found[:NAMED_MAX])})"] if found else []


def _report(ok: bool, path: str, answers: Sequence[Answer]) -> dict[str, Any]:
    processes = [
        {
            "command": answer.target.command,
            "pid": answer.target.pid,
            "address": answer.address,
            "ok": answer.ok,
            "status": answer.status,
            "reason": answer.reason,
            "details": answer.details,
        }
        for answer in answers
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
