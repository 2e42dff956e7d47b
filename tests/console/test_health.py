"""`maskline health` against admin ports that are really there, and the decisions it makes."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from maskline.console import health
from maskline.console.health import ProbedProcess, ProbeResult, all_healthy, find_processes, summary_line
from maskline.console.main import main
from maskline.runtime.admin import port_notes
from maskline.runtime.admin.port_notes import Note, write_note
from maskline.runtime.admin.server import AdminServer, Health
from maskline.schemas.settings import ADMIN_PORTS, Settings, load_settings

WELL = Health(ok=True, details={"stopping": False})


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch, namespace):
    """Notes of the test alone, and a proxy that must not be asked."""
    monkeypatch.setattr(port_notes, "_places", lambda: [tmp_path])
    monkeypatch.setenv("MASKLINE_NAMESPACE", namespace)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@contextlib.asynccontextmanager
async def node(command: str = "ingest", ready: Health = WELL, **options: Any) -> AsyncIterator[AdminServer]:
    """An admin port as a node has it."""
    settings = load_settings()
    port = ADMIN_PORTS[command] if settings.admin_port is None else settings.admin_port
    server = AdminServer(
        settings.admin_host, port, live=lambda: WELL, ready=lambda: ready, registry=CollectorRegistry(),
        search=settings.admin_port is None, note=Note.of(command, settings), **options,
    )  # fmt: skip
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def said(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and line."""
    capsys.readouterr()  # what the node has logged: others on this machine may have the port that it tried first
    code = await asyncio.to_thread(main, ["health", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1 or "--json" in arguments
    return code, out.rstrip("\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "[::]", "localhost", "127.0.0.2,127.0.0.1"])  # noqa: S104
@pytest.mark.parametrize("port", ["0", ""])
async def test_process_is_reached_wherever_it_listens(capsys, monkeypatch, host, port):
    monkeypatch.setenv("MASKLINE_ADMIN_HOST", host)
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", port)
    async with node() as server:
        code, text = await said(capsys)
        assert (code, text.startswith("healthy: ingest at ")) == (0, True), text
        assert text.endswith(f":{server.port}")
        assert (await said(capsys, "ingest"))[0] == 0
    if port:  # else anybody's may be at the default ports of this machine
        assert (await said(capsys))[0] == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost", "127.0.0.2,127.0.0.1"])  # noqa: S104
async def test_without_a_note_the_ports_of_the_settings_are_probed(capsys, monkeypatch, tmp_path, host):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "maskline.toml"
    config.write_text(f'MASKLINE_ADMIN_PORT = {port}\nMASKLINE_ADMIN_HOST = "{host}"\n')
    monkeypatch.setenv("MASKLINE_CONFIG", str(config))
    async with node() as server:
        server._written_note.remove()
        server._written_note = None
        assert (await said(capsys))[0] == 0
        assert (await said(capsys, "worker"))[0] == 0
        monkeypatch.setenv("MASKLINE_NAMESPACE", "another")
        async with node_elsewhere():
            assert (await said(capsys))[0] == 0
    code, text = await said(capsys)
    assert code == 1
    assert f":{port} cannot be reached" in text


@contextlib.asynccontextmanager
async def node_elsewhere() -> AsyncIterator[None]:
    """One with other settings, and a note."""
    settings = Settings(namespace="elsewhere", admin_port=0)
    server = AdminServer(
        "127.0.0.1", 0, live=lambda: WELL, ready=lambda: WELL, registry=CollectorRegistry(),
        note=Note.of("ingest", settings),
    )  # fmt: skip
    await server.start()
    yield
    await server.stop()


async def test_ready_reports_the_reasons_of_an_unready_process(capsys, monkeypatch):
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", "0")
    details = {"stopping": True, "redis": {"takes": False, "reason": "no\nroute"}, "spool": {"reason": ""}}
    async with node(ready=Health(ok=False, details=details)) as server:
        assert await said(capsys) == (0, f"healthy: ingest at 127.0.0.1:{server.port}")
        code, text = await said(capsys, "--ready")
        assert code == 1
        assert text == (
            f"not ready: ingest at 127.0.0.1:{server.port} answers 503 (it is stopping; no route)"
        )
        code, text = await said(capsys, "--ready", "--json")
        report = json.loads(text)
        assert code == 1
        assert (report["ok"], report["path"]) == (False, "/readyz")
        assert report["processes"][0]["status"] == 503
        assert report["processes"][0]["details"] == {"ok": False} | details


async def test_ready_reports_why_a_worker_is_not_ready(capsys, monkeypatch):
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", "0")
    async with node("worker", ready=Health(ok=False, details={"redis": "Redis at h:1 cannot be reached"})):
        assert (await said(capsys, "--ready"))[1].endswith("answers 503 (Redis at h:1 cannot be reached)")


async def test_hanging_process_is_reported_in_time_with_all_others(capsys, monkeypatch):
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections, nobody answers
        hung = msgspec.structs.replace(
            Note.of("ingest", load_settings()), addresses=(("127.0.0.1", silent.getsockname()[1]),)
        )
        left = write_note(hung)
        async with node("worker"):
            began = time.monotonic()
            code, text = await said(capsys, "--timeout", "0.3", "--json")
            assert time.monotonic() - began < health.TIMEOUT_S
            assert code == 1
            answers = {process["command"]: process for process in json.loads(text)["processes"]}
            assert answers["ingest"]["reason"] == "has not answered within 0.3 s"
            assert answers["worker"]["ok"]
            assert (await said(capsys, "worker"))[0] == 0
        left.remove()


async def test_slow_answer_does_not_extend_the_deadline(capsys, monkeypatch):
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", "0")

    gone = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"HTTP/1.1 200 OK\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    left = write_note(msgspec.structs.replace(Note.of("ingest", load_settings()), addresses=(address,)))
    code, text = await said(capsys, "--timeout", "0.2")
    assert (code, "has not answered within 0.2 s" in text) == (1, True)
    await gone.wait()
    left.remove()
    server.close()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-x\r\n", "is not maskline's"),
        (b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n{}", "is not maskline's"),
        (b"HTTP/1.1 200 OK\r\nServer: maskline\r\n\r\n[1]", "cannot be read"),
        (b"HTTP/1.1 \xff\r\nServer: maskline\r\n\r\n{}", "is not maskline's"),
        (b'HTTP/1.1 500 Oh\r\nServer: maskline\r\n\r\n{"error": "x"}', "answers 500 (x)"),
    ],
)
async def test_unusable_answers_are_named(capsys, monkeypatch, reply, why):
    monkeypatch.setenv("MASKLINE_ADMIN_PORT", "0")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    left = write_note(
        msgspec.structs.replace(
            Note.of("ingest", load_settings()), addresses=(server.sockets[0].getsockname(),)
        )
    )
    code, text = await said(capsys)
    assert code == 1
    assert why in text
    left.remove()
    server.close()


@pytest.mark.parametrize(
    ("arguments", "setting", "named"),
    [
        ((), ("MASKLINE_ADMIN_PORT", "x"), "MASKLINE_ADMIN_PORT"),
        ((), ("MASKLINE_CONFIG", "/nowhere"), "MASKLINE_CONFIG"),
        (("both",), ("MASKLINE_PORT", ""), "both"),
        (("--timeout", "0"), ("MASKLINE_PORT", ""), "--timeout"),
    ],
)
def test_wrong_settings_and_usage_are_exit_code_2_and_one_line(arguments, setting, named):
    environ = {"PATH": "/usr/bin", setting[0]: setting[1]}
    program = "from maskline.console.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "health", *arguments],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert done.stdout == ""


def test_health_imports_the_settings_and_little_else():
    """It runs every few seconds, on each node."""
    program = (
        "import sys\nfrom maskline.console.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, *sys.modules)"
    )
    environ = {"PATH": "/usr/bin", "MASKLINE_ADMIN_PORT": "0", "MASKLINE_NAMESPACE": "of-nobody"}
    done = subprocess.run(
        [sys.executable, "-c", program, "health"], env=environ, capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "1"
    heavy = {
        "asyncio",
        "aiohttp",
        "redis",
        "hiredis",
        "structlog",
        "rich",
        "uvloop",
        "yarl",
        "prometheus_client",
    }
    assert not heavy & set(modules)
    ours = {
        name
        for name in modules
        if name.startswith(("maskline.ingest", "maskline.worker", "maskline.handlers", "maskline.console"))
    }
    assert ours == {"maskline.console", "maskline.console.main", "maskline.console.health"}


# Decisions

A = (("127.0.0.1", 9090),)
GUESS, OTHER_GUESS = ProbedProcess("ingest", A, None), ProbedProcess("worker", (("127.0.0.1", 9091),), None)


def noted(command: str, port: int, **settings: Any) -> Note:
    return msgspec.structs.replace(
        Note.of(command, Settings(**settings)), addresses=(("127.0.0.1", port),), pid=7
    )


@pytest.mark.parametrize(
    ("settings", "command", "left", "found"),
    [
        ({}, None, [], [GUESS, OTHER_GUESS]),
        ({}, "worker", [], [OTHER_GUESS]),
        ({"admin_port": 0}, None, [], []),
        ({"admin_port": 9090}, None, [], [ProbedProcess("ingest or worker", A, None)]),
        ({"admin_host": "::,h"}, "ingest", [], [
            ProbedProcess("ingest", (("::1", 9090), ("127.0.0.1", 9090), ("h", 9090)), None),
        ]),
        ({}, None, [noted("ingest", 9090)], [ProbedProcess("ingest", A, 7)]),
        ({}, "worker", [noted("ingest", 9090)], [OTHER_GUESS]),
        ({}, None, [noted("ingest", 9090), noted("ingest", 9093), noted("worker", 9091, group="g")], [
            ProbedProcess("ingest", A, 7), ProbedProcess("ingest", (("127.0.0.1", 9093),), 7),
        ]),
        # What another's note names is that one's, however well it is.
        ({}, None, [noted("ingest", 9090, namespace="other")], [OTHER_GUESS]),
        ({"admin_port": 9090}, None, [noted("ingest", 9090)], []),
    ],
)  # fmt: skip
def test_processes_to_probe_are_those_with_notes_else_those_of_the_settings(settings, command, left, found):
    assert find_processes(Settings(**settings), command, left) == found


THERE = ProbedProcess("ingest", A, 7)
WELL_A, WELL_B = ProbeResult(THERE, "a:1", 200, ""), ProbeResult(THERE, "b:1", 200, "")
ABSENT = [
    ProbeResult(GUESS, "a:1", None, "x", absent=True),
    ProbeResult(OTHER_GUESS, "b:1", None, "y", absent=True),
]


@pytest.mark.parametrize(
    ("answers", "ok", "told"),
    [
        ([], False, "not healthy: no process with these settings has left a note of its port here"),
        ([WELL_A], True, "healthy: ingest at a:1"),
        ([WELL_A, WELL_B], True, "healthy: ingest at a:1, ingest at b:1"),
        ([WELL_A, WELL_B._replace(reason="hangs")], False, "not healthy: ingest at b:1 hangs"),
        ([WELL_A._replace(reason="is gone", absent=True)], False, "not healthy: ingest at a:1 is gone"),
        (ABSENT, False, "not healthy: ingest at a:1 x; worker at b:1 y"),
        ([WELL_A._replace(process=GUESS), ABSENT[1]], True, "healthy: ingest at a:1"),
        ([ABSENT[0]._replace(absent=False), ABSENT[1]], False, "not healthy: ingest at a:1 x"),
        ([WELL_A] * 6, True, f"healthy: {', '.join(['ingest at a:1'] * 4)}, and 2 more"),
    ],
)
def test_summary_line_names_the_processes_that_decide(answers, ok, told):
    assert all_healthy(answers) is ok
    assert summary_line(ok, answers, ready=False) == told
