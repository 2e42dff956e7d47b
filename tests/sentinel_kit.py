"""A real Sentinel group for the tests: one primary, two replicas, three sentinels, on free ports.

Nothing here waits for a number of seconds: each step waits for what it has brought about.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import redis
from servers import SETTLE_S, RedisServer, free_port, plain_reply, valkey_binary, wait_until

SENTINEL_DOWN_MS: Final = 1_000
"""A primary that is silent for so long is down for a sentinel: short, so that a test is."""


class Sentinel:
    """One sentinel process: its configuration file is its memory."""

    def __init__(self, directory: Path, binary: str, service: str, primary_port: int) -> None:
        self.directory = directory
        self.port = free_port()
        self._binary = binary
        self._configuration = directory / "sentinel.conf"
        directory.mkdir(parents=True)
        self._configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {service} 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds {service} {SENTINEL_DOWN_MS}\n"
            f"sentinel failover-timeout {service} {3 * SENTINEL_DOWN_MS}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "sentinel.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, str(self._configuration), "--sentinel"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(self._answers, what="a sentinel to answer")
        # They look at each other every two seconds, and at the servers every ten: a test cannot wait for that.
        self.ask("SENTINEL", "DEBUG", "info-period", 200, "publish-period", 200, "ping-period", 200)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "sentinel.log").read_text()
        with contextlib.suppress(redis.RedisError):
            return bool(self.ask("PING"))
        return False

    def ask(self, *command: Any) -> Any:
        return plain_reply(self.port, *command)

    def kill(self) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


class SentinelServers:
    """One primary and two replicas under the eyes of three sentinels, of which two must agree."""

    def __init__(
        self, directory: Path, *, service: str = "maskline-primary", binary: str | None = None
    ) -> None:
        self._directory = directory
        self._binary = binary or valkey_binary()
        self.service = service
        fast = ("--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0")
        self.servers = [
            RedisServer(directory / f"server-{number}", binary=self._binary, options=fast)
            for number in range(3)
        ]
        self.sentinels: list[Sentinel] = []
        self._killed: RedisServer | None = None

    @property
    def url(self) -> str:
        return (
            f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{self.service}/0"
        )

    def start(self) -> "SentinelServers":
        """Start everything; returns when each sentinel knows both replicas and both other sentinels."""
        try:
            primary, *replicas = self.servers
            for server in self.servers:
                server.start()
            for server in replicas:
                with server.client() as client:
                    client.replicaof("127.0.0.1", primary.port)
            wait_until(lambda: self._in_step(primary), within_s=SETTLE_S, what="the replicas to be in step")
            for number in range(3):
                directory = self._directory / f"sentinel-{number}"
                self.sentinels.append(Sentinel(directory, self._binary, self.service, primary.port))
                self.sentinels[-1].start()
            wait_until(self._acquainted, within_s=SETTLE_S, what="the sentinels to know each other")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for process in (*self.sentinels, *self.servers):
            process.kill()

    def primary(self) -> RedisServer:
        """The primary as the sentinels agree on it; waits until they do."""
        return wait_until(self._agreed, within_s=SETTLE_S, what="the sentinels to agree")  # type: ignore[no-any-return]

    def kill_primary(self) -> RedisServer:
        """Kill -9 of the primary; the server that it was."""
        self._killed = self.primary()
        self._killed.kill()
        return self._killed

    def until_failed_over(self) -> RedisServer:
        """Wait until another server than the killed one is the primary, for all and in truth; the new primary."""

        def done() -> RedisServer | None:
            heir = self._agreed()
            return heir if heir is not None and heir is not self._killed and self._in_step(heir) else None

        return wait_until(done, within_s=SETTLE_S, what="the failover")  # type: ignore[no-any-return]

    def pause_past_a_failover(self) -> None:
        """SIGSTOP of the primary until another one is elected; then it goes on, and believes for a while that it is it.

        Returns when Sentinel has made it a replica of the new one.
        """
        old = self.primary()
        old.pause()
        try:
            wait_until(
                lambda: (heir := self._agreed()) is not None and heir is not old,
                within_s=SETTLE_S,
                what="the failover",
            )
        finally:
            old.resume()
        wait_until(lambda: self._in_step(self.primary()), within_s=SETTLE_S, what="the old primary to follow")

    def restart_killed(self) -> None:
        """Start the killed server again. It comes back as a primary; returns when Sentinel has made it a replica."""
        assert self._killed is not None
        self._killed.start()
        self._killed = None
        wait_until(lambda: self._in_step(self.primary()), within_s=SETTLE_S, what="the old primary to follow")

    def _agreed(self) -> RedisServer | None:
        addresses = {
            tuple(one.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service) or ())
            for one in self.sentinels
        }
        if len(addresses) != 1:
            return None
        (address,) = addresses
        return next((server for server in self.servers if address[1:] == (b"%d" % server.port,)), None)

    def _in_step(self, primary: RedisServer) -> bool:
        """The server is a primary, and all others that live are its replicas and have its data."""
        others = [server for server in self.servers if server.process is not None and server is not primary]
        return (
            primary.process is not None
            and _replication(primary)["role"] == "master"
            and all(
                (seen := _replication(one))["role"] == "slave"
                and seen["master_port"] == primary.port
                and seen["master_link_status"] == "up"
                for one in others
            )
        )

    def _acquainted(self) -> bool:
        for one in self.sentinels:
            reply = one.ask("SENTINEL", "MASTER", self.service)
            state = dict(zip(reply[::2], reply[1::2], strict=True))
            if (state[b"num-slaves"], state[b"num-other-sentinels"]) != (b"2", b"2"):
                return False
        return True


def _replication(server: RedisServer) -> dict[str, Any]:
    with server.client() as client:
        return dict(client.info("replication"))
