"""A primary and the replica that follows it, which changes places with it at a failover. Every call here blocks.

The replica keeps what had reached it and nothing else. What it has is confirmed to ingest by WAIT, so whatever is
answered 200 is in both, or in a spool.
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
    """`primary` is in use, `replica` follows it."""

    def __init__(self, directory: Path, *, binary: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.primary, self.replica = (
            RedisServer(directory / f"server-{number}", binary=binary, options=(*FAST, *options))
            for number in range(2)
        )

    def start(self) -> "Replicated":
        self.primary.start()
        self.rejoin()
        return self

    def kill(self) -> None:
        self.primary.kill()
        self.replica.kill()

    def cut(self) -> None:
        """From now on nothing that the primary takes reaches the replica, which waits to take its place."""
        with self.replica.client() as client:
            client.replicaof("no", "one")

    def leap(self, streams: Iterable[str]) -> None:
        """The primary gives IDs as though its clock were ahead."""
        with self.primary.client() as client:
            ahead = f"{time.time_ns() // 1_000_000 + AHEAD_MS}-0"
            for stream in streams:
                with contextlib.suppress(redis.ResponseError):  # there is no such stream yet
                    client.execute_command("XSETID", stream, ahead)

    def change_places(self) -> None:
        """Kill -9 of the primary. The other one is in use, with what it has; nobody follows it."""
        self.primary.kill()
        self.primary, self.replica = self.replica, self.primary

    def come_back(self) -> None:
        """The old primary is up again, as though nothing had been; what its successor took is gone."""
        self.replica.start()
        self.change_places()

    def change_places_at_the_address(self) -> None:
        """The same as `change_places`; the one in use then comes up where the other one was."""
        self.change_places()
        self.primary.kill()
        self.primary.port, self.replica.port = self.replica.port, self.primary.port
        self.primary.start()

    def rejoin(self) -> None:
        """The other server comes up as a replica; returns when it has everything, on its disk as well."""
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
        self.until_in_step()

    def until_in_step(self) -> None:
        """Wait until the replica has everything."""
        wait_until(self._in_step, within_s=SETTLE_S, what="the replica to be in step")

    def _in_step(self) -> bool:
        """What is killed now comes back with everything: a file is begun anew when the role changes."""
        with self.primary.client() as primary, self.replica.client() as replica:
            seen = replica.info("replication")
            if seen["master_link_status"] != "up":
                return False
            if seen["slave_repl_offset"] < primary.info("replication")["master_repl_offset"]:
                return False
            files = [client.info("persistence") for client in (primary, replica)]
            return not any(it["aof_rewrite_in_progress"] or it["aof_rewrite_scheduled"] for it in files)
