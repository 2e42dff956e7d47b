"""A primary and its replica, which takes its place at a failover. Every call here blocks.

The replica keeps what had reached it and nothing else. Ingest confirms callbacks by WAIT, so every callback answered
200 is on both servers, or in a spool.
"""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

import redis
from servers import SETTLE_S, RedisServer, wait_until

FAST = ("--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0")
AHEAD_MS = 3_000
"""How far the clock of a primary may be ahead of its replica's."""


class Replicated:
    """Two servers: `primary` is in use, `replica` follows it."""

    def __init__(self, directory: Path, *, binary: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.primary, self.replica = (
            RedisServer(directory / f"server-{number}", binary=binary, options=(*FAST, *options))
            for number in range(2)
        )

    def start(self) -> "Replicated":
        self.primary.start()
        self.attach_replica()
        return self

    def kill(self) -> None:
        self.primary.kill()
        self.replica.kill()

    def stop_replication(self) -> None:
        """Stop the replication: nothing that the primary takes reaches the replica any more."""
        with self.replica.client() as client:
            client.replicaof("no", "one")

    def advance_clock(self, streams: Iterable[str]) -> None:
        """Let the primary give IDs as though its clock were ahead, in these streams."""
        with self.primary.client() as client:
            ahead = f"{time.time_ns() // 1_000_000 + AHEAD_MS}-0"
            for stream in streams:
                with contextlib.suppress(redis.ResponseError):  # there is no such stream yet
                    client.execute_command("XSETID", stream, ahead)

    def fail_over(self) -> None:
        """Kill -9 the primary. The replica is the primary now, with what it has, and without a replica."""
        self.primary.kill()
        self.primary, self.replica = self.replica, self.primary

    def return_old_primary(self) -> None:
        """Start the old primary as primary, as if there had been no failover; what its successor took is gone."""
        self.replica.start()
        self.fail_over()

    def fail_over_at_the_same_address(self) -> None:
        """Like `fail_over`, but the new primary then listens where the old one did."""
        self.fail_over()
        self.primary.kill()
        self.primary.port, self.replica.port = self.replica.port, self.primary.port
        self.primary.start()

    def attach_replica(self) -> None:
        """Start the other server as a replica. Returns when it has everything, on its disk as well."""
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
        self.wait_in_sync()

    def wait_in_sync(self) -> None:
        """Wait until the replica has everything."""
        wait_until(self._in_sync, within_s=SETTLE_S, what="the replica to be in step")

    def _in_sync(self) -> bool:
        """Whether a server that is killed now has everything at its restart: a role change rewrites its file."""
        with self.primary.client() as primary, self.replica.client() as replica:
            seen = replica.info("replication")
            if seen["master_link_status"] != "up":
                return False
            if seen["slave_repl_offset"] < primary.info("replication")["master_repl_offset"]:
                return False
            files = [client.info("persistence") for client in (primary, replica)]
            return not any(it["aof_rewrite_in_progress"] or it["aof_rewrite_scheduled"] for it in files)
