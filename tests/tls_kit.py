"""Servers behind real TLS, with certificates made on the spot.

The servers from wheels are built without TLS: in front of them a relay of the test's own ends it, in a thread, so that
worker processes and synchronous tests can use it too. A server with TLS of its own, as Redis 7.0 in `make matrix`, uses
that.
"""

import asyncio
import ssl
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import trustme
from servers import RedisServer, free_port, has_tls

CHUNK_BYTES: Final = 1 << 16
START_TIMEOUT_S: Final = 10.0


class Certificates:
    """An authority, its certificates for `hosts`, and a client's certificate, as files in `directory`."""

    def __init__(self, directory: Path, *hosts: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        self.authority = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.server, self.server_key = _write(authority.issue_cert(*hosts), directory, "server")
        self.client, self.client_key = _write(authority.issue_cert("worker@example.com"), directory, "client")

    def trusting(self, *, client: "Certificates | None" = None) -> str:
        """The query of a rediss:// URL that trusts the authority, and shows the client's certificate of `client`."""
        options = {"ssl_ca_certs": str(self.authority)}
        if client is not None:
            options |= {"ssl_certfile": str(client.client), "ssl_keyfile": str(client.client_key)}
        return "?" + urlencode(options)


def _write(made: trustme.LeafCert, directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    for number, blob in enumerate(made.cert_chain_pems):
        blob.write_to_path(str(certificate), append=number > 0)
    made.private_key_pem.write_to_path(str(key))
    return certificate, key


class TlsServer:
    """A server that speaks TLS on `port`; with `client_certificates` only to clients whom the authority knows."""

    def __init__(
        self, directory: Path, certificates: Certificates, binary: str, *, client_certificates: bool = False
    ) -> None:
        self.certificates = certificates
        self.client_certificates = client_certificates
        self.port = free_port()
        self._relay: _Relay | None = None
        options: tuple[str, ...] = ()
        if has_tls(binary):
            options = (
                "--tls-port",
                str(self.port),
                "--tls-cert-file",
                str(certificates.server),
                "--tls-key-file",
                str(certificates.server_key),
                "--tls-ca-cert-file",
                str(certificates.authority),
                "--tls-auth-clients",
                "yes" if client_certificates else "no",
            )
        self.server = RedisServer(directory, binary=binary, options=options)
        """The server itself, which also listens without TLS."""

    def url(self, query: str, *, host: str = "localhost", login: str = "") -> str:
        return f"rediss://{login}{host}:{self.port}/0{query}"

    def start(self) -> "TlsServer":
        self.server.start()
        if "--tls-port" not in self.server.options:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.certificates.authority)
            context.load_cert_chain(self.certificates.server, self.certificates.server_key)
            context.verify_mode = ssl.CERT_REQUIRED if self.client_certificates else ssl.CERT_NONE
            self._relay = _Relay(self.port, self.server.port, context)
            self._relay.start()
        return self

    def stop(self) -> None:
        self.server.stop()
        if self._relay is not None:
            self._relay.stop()


class _Relay:
    """Ends TLS on one port and passes the bytes on to another, on a loop and a thread of its own."""

    def __init__(self, port: int, to_port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._to_port = to_port
        self._context = context
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._thread.start()
        self._started.result(START_TIMEOUT_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_TIMEOUT_S)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._relay, "127.0.0.1", self._port, ssl=self._context)
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self._stopping.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            writers.append(to_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, to_writer))
                both.create_task(_pass_on(to_reader, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one of the two ends is gone, or all is to end: the task has nobody whom it could tell
        finally:
            for one in writers:
                one.transport.abort()  # closing would wait for the other end's farewell
            self._connections.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one end closes; then the other end is closed as well, after what is still on its way."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()
