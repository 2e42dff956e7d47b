"""Prepares the benchmark: installs the peers under .bench/, and compiles the load generator.

Each step leaves a stamp with the hash of its sources, and runs again when they change. Nothing needs root.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import load
from bench.machine import HOME, ROOT, BenchError

BENCH = Path(__file__).parent
PEERS = HOME / "peers"
PEERS_PYTHON = PEERS / "bin" / "python"
NODE_HOME = HOME / "node"

_PYTHON_SOURCES = [BENCH / "requirements.txt", ROOT / "constraints.txt"]
_NODE_SOURCES = [BENCH / "package.json", BENCH / "package-lock.json"]


def prepare_load(console: Console) -> None:
    """Compile the load generator. Raises BenchError if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("the load generator needs a C compiler (cc): install gcc or clang")
    made = load.BINARY.with_suffix(f".{os.getpid()}")

    def compile_it() -> None:
        _run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(made), str(load.SOURCE), "-lm"])
        made.replace(load.BINARY)  # at once: another process may be using it

    _step(console, "compiling the load generator", "load", [load.SOURCE], compile_it)


def prepare_peers(console: Console) -> None:
    """Install the Python peers. Raises BenchError if that fails."""

    def install() -> None:
        _run([sys.executable, "-m", "venv", "--clear", str(PEERS)])
        _run(
            [
                str(PEERS_PYTHON),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
                str(_PYTHON_SOURCES[0]),
                "-c",
                str(_PYTHON_SOURCES[1]),
            ]
        )

    _step(console, "installing the Python peers (a minute the first time)", "peers", _PYTHON_SOURCES, install)


def prepare_node(console: Console) -> bool:
    """Install the Node peer; False, with a line on the terminal, if there is no Node on the machine."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        console.print("[yellow]node or npm is missing: fastify is left out[/]")
        return False

    def install() -> None:
        NODE_HOME.mkdir(parents=True, exist_ok=True)
        for source in _NODE_SOURCES:
            shutil.copy(source, NODE_HOME)
        _run([npm, "ci", "--no-audit", "--no-fund", "--silent", "--prefix", str(NODE_HOME)])

    _step(console, "installing the Node peer", "node", _NODE_SOURCES, install)
    return True


def _step(console: Console, what: str, name: str, sources: list[Path], make: Callable[[], None]) -> None:
    stamp = HOME / f"{name}.stamp"
    wanted = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    console.print(what)
    HOME.mkdir(parents=True, exist_ok=True)
    make()
    stamp.write_text(wanted)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[:4])} …: {(done.stderr or done.stdout).strip()[-1500:]}")
