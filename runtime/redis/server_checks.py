"""Checks whether a Redis server's setup lets maskline keep its promises: version, eviction, persistence, memory, role.

- An *error* endangers "nothing unhandled is ever evicted", or the server is too old to be spoken to at all: ingest
  spools until an operator has acted. A *warning* weakens another promise, or may come to.
- Every finding is one line that names what was found, what it costs and what to do.
- Facts that a server does not report (an ACL, a managed service) are not guessed: they are left out, and a warning
  names them.

For callers: `report = await inspect_server(connection)` once for every connection (one round trip), log `report.errors`
and `report.warnings` by `code` and `text`, and show `report.details()` in the JSON of /readyz. With several servers, as
in a cluster, each has its own report; no text says which server it is about. `find_faults` is pure.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from maskline.runtime.redis.pipeline import PipelinedConnection, pack

OLDEST_REDIS: Final = (7, 0)
"""Before it XAUTOCLAIM does not say what was deleted, and XGROUP takes no ENTRIESREAD."""

MEMORY_HIGH: Final = 0.9
"""Above this part of maxmemory a burst may fill the rest: a warning while nothing is refused yet."""

SECTIONS: Final = ("server", "memory", "persistence", "replication")

_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})")


class Finding(NamedTuple):
    """One thing that is wrong with a server."""

    severity: Literal["error", "warning"]
    code: str
    """A stable word: `server_too_old`, `callbacks_evicted`, `states_evicted`, `eviction_policy`, `memory_nearly_full`,
    `no_persistence`, `snapshots_only`, `appendonly_off`, `append_failing`, `snapshot_failing`, `replica`,
    `not_inspected`."""
    text: str
    """One line for an operator: what was found, what it costs, what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerReport:
    """The facts that a server reports of itself, and its faults."""

    version: str
    """As `Valkey 9.1.2` or `Redis 8.2.3`; `unknown` if the server does not report it."""
    findings: tuple[Finding, ...]
    memory_used_bytes: int | None = None
    memory_max_bytes: int | None = None
    """`maxmemory`; 0 for none. None if the server does not report it."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that endanger callbacks."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def too_old(self) -> Finding | None:
        """The finding that the server is too old to be used at all, if it is."""
        return next((finding for finding in self.findings if finding.code == "server_too_old"), None)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that weaken another promise."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def details(self) -> dict[str, Any]:
        """For /readyz: `version`, `memory`, and `errors` and `warnings` as code and text each."""
        return {
            "version": self.version,
            "memory": {"used_bytes": self.memory_used_bytes, "max_bytes": self.memory_max_bytes},
            "errors": [{"code": finding.code, "text": finding.text} for finding in self.errors],
            "warnings": [{"code": finding.code, "text": finding.text} for finding in self.warnings],
        }


async def inspect_server(connection: PipelinedConnection) -> ServerReport:
    """Ask a server about itself, in one round trip.

    Raises RedisUnavailableError if the connection is lost. A server that refuses to reply is reported, not raised.
    """
    asked = [pack("INFO", section) for section in SECTIONS] + [pack("CONFIG", "GET", "save")]
    *sections, configured = await connection.send(b"".join(asked), len(asked))
    info: dict[str, str] = {}
    for section in sections:
        info |= parse_info(section)
    save = None
    # The reply is name and value.
    if isinstance(configured, list) and len(configured) == 2 and isinstance(configured[1], bytes):
        save = configured[1].decode(errors="replace")
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    return ServerReport(version_of(info), tuple(find_faults(info, save)), used, limit)


# The pure part


def parse_info(reply: Any) -> dict[str, str]:
    """The fields of a reply to INFO; none where the server refused it. Lines without a field are passed over."""
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in pairs if colon}


def version_of(info: Mapping[str, str]) -> str:
    """The server's name and version by the fields of INFO, as `Valkey 9.1.2`; `unknown` if they lack it."""
    # Valkey's redis_version is the one that it is compatible with.
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}" if "redis_version" in info else "unknown"


def find_faults(info: Mapping[str, str], save: str | None) -> list[Finding]:
    """The faults of a server, by its own account.

    `info`: the fields of INFO, as far as the server gave them. `save`: its save points as CONFIG GET gives them, "" for
    none, None if it does not report them.
    """
    findings = [*_version(info), *_memory(info), *_persistence(info, save), *_replication(info)]
    if not_told := list(_not_told(info, save)):
        findings.append(
            Finding(
                "warning",
                "not_inspected",
                f"the server does not tell its {', '.join(not_told)}: allow this user INFO and CONFIG|GET, or check "
                "docs/operating.md by hand",
            )
        )
    return findings


def _version(info: Mapping[str, str]) -> Iterator[Finding]:
    if "valkey_version" in info:
        return  # every release of Valkey is new enough
    if found := _VERSION.match(info.get("redis_version", "")):
        version = (int(found[1]), int(found[2]))
        if version < OLDEST_REDIS:
            yield Finding(
                "error",
                "server_too_old",
                f"{version_of(info)} is too old: the worker's scripts need Redis 7.0 or Valkey 7.2, upgrade the server",
            )


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    policy, limit, used = (
        info.get("maxmemory_policy"),
        _number(info, "maxmemory"),
        _number(info, "used_memory"),
    )
    remedy = "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file"
    if policy is not None and policy != "noeviction":
        if not limit:  # none, or not reported
            yield Finding(
                "warning",
                "eviction_policy",
                f"maxmemory-policy is {policy}: with a maxmemory the server would drop what it holds; {remedy}",
            )
        elif policy.startswith("volatile-"):
            yield Finding(
                "warning",
                "states_evicted",
                f"maxmemory-policy is {policy}: a full server drops session states and leases, so that "
                f"events come twice or out of order; {remedy}",
            )
        else:
            yield Finding(
                "error",
                "callbacks_evicted",
                f"maxmemory-policy is {policy}: a full server drops callbacks that nobody has handled; {remedy}",
            )
    if limit and used is not None and used > MEMORY_HIGH * limit:
        yield Finding(
            "warning",
            "memory_nearly_full",
            f"{used / limit:.0%} of maxmemory are used: a full server takes no callbacks; raise maxmemory, or shorten "
            "MASKLINE_RETENTION_S",
        )


def _persistence(info: Mapping[str, str], save: str | None) -> Iterator[Finding]:
    remedy = "CONFIG SET appendonly yes, and the same in the server's configuration file"
    if info.get("aof_enabled") == "0":
        code, cost = "snapshots_only", "what was taken since the last snapshot"
        if save is None:
            code, cost = (
                "appendonly_off",
                "what was taken since the last snapshot, if there are any, or all of it",
            )
        elif not save:
            code, cost = "no_persistence", "everything that was taken"
        yield Finding("warning", code, f"appendonly is no: a restart of the server loses {cost}; {remedy}")
    remedy = "free its disk or look into the server's log; until then it may refuse callbacks"
    if info.get("aof_enabled") != "0" and info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            "warning", "append_failing", f"the server could not write its append-only file: {remedy}"
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding(
            "warning", "snapshot_failing", f"the server could not write its last snapshot: {remedy}"
        )


def _replication(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding(
            "warning",
            "replica",
            "the server is a replica and takes no callbacks: MASKLINE_REDIS_URL must lead to the primary "
            "(redis+sentinel:// finds it after every failover)",
        )


def _not_told(info: Mapping[str, str], save: str | None) -> Iterator[str]:
    """In words, the facts that a check needs and the server did not report."""
    if "valkey_version" not in info and not _VERSION.match(info.get("redis_version", "")):
        yield "version"
    if "maxmemory_policy" not in info or _number(info, "maxmemory") is None:
        yield "eviction policy"
    if "aof_enabled" not in info or (info["aof_enabled"] == "0" and save is None):
        yield "persistence"
    if "role" not in info:
        yield "role"


def _number(info: Mapping[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else None
