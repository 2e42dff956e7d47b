"""Run everything that talks to a server on each server that is supported: `make matrix`.

Valkey 9.1 and Redis 8.2 come from wheels. Redis 7.0, the oldest one, is Debian's package, unpacked without root into
.matrix/; where that cannot be had, `redis-server` on the PATH stands in. Arguments go to pytest (`-k lease`).
Exit code 1 if anything failed or there is no third server.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from servers import BINARIES

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".matrix"
PACKAGES = ("redis-server", "redis-tools")
LIBRARIES = ("libjemalloc2", "liblzf1", "libatomic1")
"""What the server needs and a plain Debian may lack."""
APT_TIMEOUT_S = 300


def main(arguments: list[str]) -> int:
    servers = {kind: binary() for kind, binary in BINARIES.items()}
    oldest = debian_redis() or shutil.which("redis-server")
    if oldest:
        servers[oldest] = oldest
    results = {version_of(binary): tests_pass(kind, binary, arguments) for kind, binary in servers.items()}
    for version, passed in results.items():
        print(f"{'passed' if passed else 'FAILED'}: {version}")
    if not oldest:
        print(
            "FAILED: Redis 7.0 is not to be had here: install redis-server, or run this where apt-get knows it"
        )
    return 0 if oldest and all(results.values()) else 1


def tests_pass(kind: str, binary: str, arguments: list[str]) -> bool:
    print(f"\n===== {version_of(binary)} ({binary}) =====", flush=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "4",
        "--dist",
        "worksteal",
        "-q",
        "-m",
        "server or storage",
    ]
    return (
        subprocess.run(
            [*command, *arguments], cwd=ROOT, env=os.environ | {"TEST_SERVER": kind}, check=False
        ).returncode
        == 0
    )


def version_of(binary: str) -> str:
    """As `Valkey server v=9.1.2` or `Redis server v=7.0.15`."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:3])


def debian_redis() -> str | None:
    """Debian's server, started by a script that tells it where its libraries are; None where it cannot be had."""
    start = PLACE / "redis-server"
    if not start.exists():
        if not shutil.which("apt-get"):
            return None
        PLACE.mkdir(exist_ok=True)
        if not (download(()) or download(own_lists())):
            return None
        for package in PLACE.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, PLACE / "root"], check=True)
        libraries = ":".join(
            sorted({str(path.parent) for path in (PLACE / "root").rglob("*.so*") if path.is_file()})
        )
        start.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{PLACE}/root/usr/bin/redis-server" "$@"\n'
        )
        start.chmod(0o755)
    works = subprocess.run([start, "--version"], capture_output=True, check=False).returncode == 0
    return str(start) if works else None


def download(options: tuple[str, ...]) -> bool:
    return apt(*options, "download", *PACKAGES, *LIBRARIES)


def own_lists() -> tuple[str, ...]:
    """Package lists of our own, for a machine that has none and where we are not root."""
    options: tuple[str, ...] = ("-o", f"Dir::State::lists={PLACE}/lists", "-o", f"Dir::Cache={PLACE}/cache")
    for folder in ("lists/partial", "cache/archives/partial"):
        (PLACE / folder).mkdir(parents=True, exist_ok=True)
    apt(*options, "update")
    return options


def apt(*arguments: str) -> bool:
    done = subprocess.run(
        ["apt-get", "-qq", *arguments],
        cwd=PLACE,
        capture_output=True,
        text=True,
        timeout=APT_TIMEOUT_S,
        check=False,
    )
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
