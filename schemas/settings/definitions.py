"""Defines every setting: name, type, default, meaning and bounds.

The table of `maskline settings`, that of `docs/settings.md`, and the reading of what the operator set
(`schemas.settings.sources`) all come from the definitions here. A new setting is one more field of `Settings`,
or of `ModuleSettings` (`schemas.settings.module_settings`) for a handler module that ships.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_type_hints

import msgspec

from maskline.schemas.settings.module_settings import ModuleSettings
from maskline.schemas.settings.sources import PREFIX, Setting
from maskline.schemas.settings.url_types import PUBLIC_URL, REDIS_URL
from maskline.schemas.settings.value_types import (
    AUTH_TOKENS,
    DURABILITY,
    FLAG,
    HANDLERS,
    HOSTS,
    HOUR_MS,
    LABEL,
    MINUTE_MS,
    NETWORKS,
    PARAMETER_NAMES,
    PATH,
    YEAR_S,
    Description,
    Network,
    choice,
    size,
    whole,
)

GIB: Final = 1 << 30
PORT: Final = whole(0, 65_535)  # 0 takes any free port
ADMIN_PORTS: Final = {"ingest": 9090, "worker": 9091}
"""By command: the admin port if MASKLINE_ADMIN_PORT is not set."""
SEQUENCE_MAX: Final = 2**53 - 1  # what a JSON number holds exactly


class Settings(ModuleSettings, frozen=True, kw_only=True):
    """All settings, checked. `Settings()` has every default, `load_settings()` what the operator has set."""

    config: Annotated[Path | None, Description(PATH, "the TOML file with settings, under the same names")] = (
        None
    )
    redis_url: Annotated[
        str,
        Description(
            REDIS_URL,
            "where Redis or Valkey is: `redis://`, `rediss://`, `unix://`, "
            "`redis+cluster://host:port,host:port`, `redis+sentinel://host:port,host:port/service/db`",
            "(dev: embedded)",
        ),
    ] = ""
    namespace: Annotated[str, Description(LABEL, "prefix of every key")] = "maskline"
    partitions: Annotated[
        int,
        # 16,384 slots are what Redis Cluster has; more streams than slots spread nothing further.
        Description(
            whole(1, 16_384), "streams; kept in Redis at first start, a different value later is refused"
        ),
    ] = 64
    host: Annotated[
        str,
        Description(
            HOSTS,
            "where ingest listens: addresses or names; `0.0.0.0` is every IPv4 address of the machine, "
            "`::` every one of both families",
        ),
    ] = "0.0.0.0"  # noqa: S104 - Plivo calls from outside
    port: Annotated[int, Description(PORT, "port where ingest listens; 0 takes a free one")] = 8080
    admin_host: Annotated[
        str,
        Description(
            HOSTS,
            "where `/healthz`, `/readyz`, `/metrics` are (never on the public port), named as in MASKLINE_HOST; "
            "with the default nobody outside the machine, or the container, reaches them",
        ),
    ] = "127.0.0.1"
    admin_port: Annotated[
        int | None,
        Description(
            PORT,
            "port of the same; with `--processes`, each takes the next one. Not set and taken: the next free port, "
            "logged; set and taken: exit 2",
            ", ".join(f"{port} {command}" for command, port in ADMIN_PORTS.items()),
        ),
    ] = None
    keepalive_s: Annotated[
        # A day is longer than any proxy keeps a connection.
        int,
        Description(
            whole(1, 24 * 3_600),
            "how long an idle connection is kept: longer than the proxy before it keeps it",
        ),
    ] = 620
    stop_delay_ms: Annotated[
        # Longer than any load balancer takes to notice; a slip of the finger must not hold a roll-out for hours.
        int,
        Description(
            whole(0, 10 * MINUTE_MS),
            "after SIGTERM ingest answers `/readyz` with 503 and goes on taking callbacks for so long, "
            "until the load balancer knows",
        ),
    ] = 0
    public_url: Annotated[
        str,
        Description(
            PUBLIC_URL,
            "the URL that Plivo dials, up to and without the path, as `https://hooks.example.com`; "
            "if empty, the request's own scheme and `Host`",
        ),
    ] = ""
    trusted_proxies: Annotated[
        tuple[Network, ...],
        Description(
            NETWORKS,
            "networks whose `X-Forwarded-Proto` / `-Host` / `-For` are believed "
            "(only where the public URL is empty, and for the client's address)",
        ),
    ] = ()
    auth_tokens: Annotated[
        tuple[tuple[str, str], ...],
        Description(
            AUTH_TOKENS,
            "`auth_id:token`, comma-separated; an auth_id may stand twice (rotation); "
            "empty is refused while verification is on",
        ),
    ] = ()
    verify: Annotated[
        Literal["on", "off"], Description(choice("on", "off"), "`off` takes unsigned callbacks")
    ] = "on"
    accept_v2: Annotated[bool, Description(FLAG, "also accept V2 signatures")] = False
    durability: Annotated[
        str,
        Description(
            DURABILITY,
            "when a callback counts as taken: `memory` (Redis answered), `fsync` (WAITAOF), "
            "`replicas:N` (WAIT N)",
        ),
    ] = "memory"
    publish_timeout_ms: Annotated[
        int, Description(whole(1, MINUTE_MS), "how long ingest waits for Redis before it spools")
    ] = 500
    in_flight_max: Annotated[
        int,
        Description(
            whole(1, 1_000_000),
            "requests of an ingest process that wait for Redis or the spool; more are answered 503",
        ),
    ] = 4096
    spool_dir: Annotated[Path, Description(PATH, "directory of the local spool", "./spool")] = Path("spool")
    spool_max_bytes: Annotated[
        int, Description(size(1 << 20, 1 << 50), "how large the local spool may grow")
    ] = GIB
    spool_drain_per_s: Annotated[
        int,
        Description(
            whole(1, 1_000_000),
            "callbacks a second that an ingest process moves from the spool to a Redis that is back",
        ),
    ] = 5000
    max_body_bytes: Annotated[
        # A body is held whole and parsed in one go: a larger bound would let one request stall a node.
        int,
        Description(size(1024, 16 << 20), "larger bodies are answered 413"),
    ] = 65_536
    refused_max_bytes: Annotated[
        # Kept in Redis, whose memory belongs to the callbacks that are good.
        int,
        Description(
            size(0, 1 << 40),
            "refused callbacks of all nodes that Redis keeps for a release; 0 keeps none",
        ),
    ] = 64 << 20
    refused_ttl_s: Annotated[
        int, Description(whole(1, YEAR_S), "how long a refused callback is kept for release")
    ] = 86_400
    group: Annotated[str, Description(LABEL, "consumer group: each group gets every event")] = "workers"
    handlers: Annotated[
        tuple[str, ...],
        Description(HANDLERS, "dotted modules, `.py` paths, and names that installed packages bring"),
    ] = ("maskline.handlers.log",)
    gap_timeout_ms: Annotated[
        int, Description(whole(0, 24 * HOUR_MS), "how long an event waits for a missing number")
    ] = 5000
    gap_spool_ms: Annotated[
        int,
        Description(
            whole(0, 24 * HOUR_MS),
            "how much longer it waits while an ingest node is known to hold spooled callbacks of that partition",
        ),
    ] = 60_000
    held_max: Annotated[
        # The cost of an arrival grows with what is held: a thousand take half a second to drain.
        int,
        Description(
            whole(1, 1_000),
            "events of one session that wait for a missing number or the opening of a call; more give it up",
        ),
    ] = 256
    first_sequence: Annotated[
        int,
        Description(
            whole(0, SEQUENCE_MAX), "number that opens a session; 0 is always taken as an opening too"
        ),
    ] = 1
    recording_sequence: Annotated[
        Literal["own", "shared"],
        Description(
            choice("own", "shared"), "do recording events count apart (`own`) or with the others (`shared`)"
        ),
    ] = "own"
    late: Annotated[
        Literal["deliver", "dead"],
        Description(
            choice("deliver", "dead"), "late events: `deliver` (flagged) or `dead` (to the dead letters)"
        ),
    ] = "deliver"
    ignored_parameters: Annotated[
        tuple[str, ...],
        Description(
            PARAMETER_NAMES,
            "names that do not count when two callbacks are compared, as `Attempt`; spelled as they are sent",
        ),
    ] = ()
    dead_max_bytes: Annotated[
        int,
        Description(
            size(1 << 20, 1 << 50),
            "dead letters, and what waits behind them, of all partitions; near it `status` and metrics say so, at it "
            "giving up waits instead of losing",
        ),
    ] = 256 << 20
    dead_ttl_s: Annotated[
        int,
        Description(whole(1, YEAR_S), "what waits behind a dead letter is given up too after this"),
    ] = 604_800
    session_ttl_s: Annotated[
        int,
        Description(
            whole(1, YEAR_S),
            "ordering state is forgotten after this silence (an hour once SessionTimeout was handled)",
        ),
    ] = 86_400
    session_cache: Annotated[
        int,
        Description(
            whole(1, 10_000_000), "session states a worker keeps in memory; others are read back from Redis"
        ),
    ] = 50_000
    lease_ttl_ms: Annotated[
        # Renewed at a third of its life: a third of less than 100 ms is no time for a round trip.
        int,
        Description(whole(100, 10 * MINUTE_MS), "a dead worker's partitions are taken over after this"),
    ] = 5000
    concurrency: Annotated[
        int, Description(whole(1, 65_536), "sessions a worker process handles at once")
    ] = 256
    outstanding_max: Annotated[
        int,
        Description(
            whole(1, 1_000_000), "callbacks a worker process has read and not finished; reading stops there"
        ),
    ] = 20_000
    stop_timeout_ms: Annotated[
        int,
        Description(
            whole(0, 10 * MINUTE_MS), "how long running handlers and requests may take to finish at SIGTERM"
        ),
    ] = 10_000
    retention_s: Annotated[
        int, Description(whole(0, YEAR_S), "how long handled callbacks stay replayable in the streams")
    ] = 3600
    retention_max_entries: Annotated[
        int, Description(whole(0, 10**12), "how many of them, over all partitions; whichever is less")
    ] = 1_000_000
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Description(choice("auto", "json", "console"), "`json`, `console`, `auto` (console on a terminal)"),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Description(choice("debug", "info", "warning", "error"), "the least severe level that is logged"),
    ] = "info"

    def __repr__(self) -> str:
        shown = (f"{s.field}={s.show(getattr(self, s.field))!r}" for s in SETTINGS)
        return f"Settings({', '.join(shown)})"


def _table() -> tuple[Setting, ...]:
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    fields = msgspec.structs.fields(Settings)
    of_modules = len(msgspec.structs.fields(ModuleSettings))
    for field in (
        *fields[of_modules:],
        *fields[:of_modules],
    ):  # the modules', which come first by inheritance, last
        (description,) = (extra for extra in get_args(hints[field.name]) if isinstance(extra, Description))
        row = Setting(
            field.name, PREFIX + field.name.upper(), field.default, description.kind, description.meaning, ""
        )
        text = row.show(field.default) if description.default_text is None else description.default_text
        rows.append(row._replace(default_text=text))
    return tuple(rows)


SETTINGS: Final = _table()
"""All settings, in the order of the docs."""
