"""A primary with one replica, which takes its place at the same address with whatever had reached it."""

from pathlib import Path

import redis
from servers import SETTLE_S, RedisServer, wait_until

FAST = ("--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0")


class Pair:
    """`primary` is the server in use, `replica` follows it until `cut`."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.primary = RedisServer(directory / "primary", binary=binary, options=FAST).start()
        self.replica = RedisServer(directory / "replica", binary=binary, options=FAST).start()
        self._follow()

    def _follow(self) -> None:
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
        wait_until(self._in_step, within_s=SETTLE_S, what="the replica to be in step")

    def _in_step(self) -> bool:
        with self.primary.client() as primary, self.replica.client() as replica:
            if replica.info("replication")["master_link_status"] != "up":
                return False
            offset = primary.info("replication")["master_repl_offset"]
            return bool(replica.info("replication")["slave_repl_offset"] >= offset)

    def cut(self) -> None:
        """From here on nothing that the primary takes reaches the replica; all that it has taken has."""
        wait_until(self._in_step, within_s=SETTLE_S, what="the replica to be in step")
        with self.replica.client() as client:
            client.replicaof("no", "one")

    def fail_over(self) -> None:
        """Kill -9 of the primary; the replica comes up as the primary, at its address."""
        port = self.primary.port
        self.primary.kill()
        self.replica.kill()
        self.primary, self.replica = self.replica, self.primary
        self.primary.port, self.replica.port = port, self.primary.port
        self.primary.start()

    def come_back(self) -> None:
        """The old primary takes its place again, with what it had; what its successor took is gone."""
        self.fail_over()

    def stop(self) -> None:
        for server in (self.primary, self.replica):
            server.kill()


def ahead_ms(client: "redis.Redis", by_ms: int) -> int:
    """The time of a server whose clock is so far ahead, in milliseconds."""
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000 + by_ms
