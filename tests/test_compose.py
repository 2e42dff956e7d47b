"""The container files against the code: names and values of settings, packages, commands, times."""

import json
import re
from pathlib import Path

import pytest

from maskline.console.commands import COMMANDS
from maskline.console.health import TIMEOUT_S
from maskline.schemas.settings import ADMIN_PORTS, SETTINGS, Settings, load_settings

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NAMES = {name for setting in SETTINGS for name in (setting.name, f"{setting.name}_FILE")}


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", ".dockerignore", "CONTRIBUTING.md"])
def test_every_setting_named_is_one(name):
    found = set(re.findall(r"\bMASKLINE_\w+", (ROOT / name).read_text()))
    assert found <= NAMES


def compose_settings(environ):
    """What the containers get: `NAME: value` of the YAML, with ${NAME:-default} and ${NAME:?…} filled in."""

    def fill(match):
        return environ.get(match[1]) or (match[3] if match[2] == ":-" else "")

    pairs = re.findall(r"^ +(MASKLINE_\w+): (.*)$", COMPOSE, re.MULTILINE)
    return {name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", fill, value) for name, value in pairs}


def test_the_values_are_taken():
    settings = load_settings(compose_settings({"MASKLINE_AUTH_TOKENS": "MA1:token"}))
    assert settings == Settings(
        redis_url="redis://redis:6379/0",
        auth_tokens=(("MA1", "token"),),
        admin_host="0.0.0.0",  # noqa: S104 - within the network of the containers
    )
    assert f'"8080:{settings.port}"' in COMPOSE
    assert re.search(rf"^EXPOSE {settings.port}$", DOCKERFILE, re.MULTILINE)


def test_the_image_sets_nothing_that_would_win_over_a_file_of_settings():
    assert not re.findall(r"^(?!#).*\bMASKLINE_", DOCKERFILE, re.MULTILINE)


def test_the_spool_is_where_the_volume_is():
    """By its default, below the working directory, which is a link."""
    (workdir,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE.rpartition("\nFROM ")[2], re.MULTILINE)
    (volume,) = re.findall(r"- spool:(\S+)$", COMPOSE, re.MULTILINE)
    assert f"ln --symbolic {volume} {workdir}/{Settings().spool_dir}" in DOCKERFILE
    assert f"install --directory --owner maskline --group maskline {volume}" in DOCKERFILE


def test_the_admin_port_is_for_the_network_of_the_containers_alone():
    services = dict(re.findall(r"^  (ingest|worker):\n((?:    .*\n|\n)+)", COMPOSE, re.MULTILINE))
    for command, port in ADMIN_PORTS.items():
        assert re.search(rf'^    expose:\n      - "{port}"$', services[command], re.MULTILINE)
        assert "MASKLINE_ADMIN_HOST: 0.0.0.0" in services[command]
        published = re.findall(r"^    ports:\n((?:      - .*\n)+)", services[command], re.MULTILINE)
        assert not any(str(port) in entry for port in ADMIN_PORTS.values() for entry in published)
    assert not re.search(r"^EXPOSE .*90", DOCKERFILE, re.MULTILINE)


def test_the_health_check_is_the_command_and_has_longer_than_it_takes():
    ((options, command),) = re.findall(r"^HEALTHCHECK (.*)CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == ["maskline", "health"]
    assert "health" in COMMANDS
    (timeout_s,) = re.findall(r"--timeout=(\d+)s", options)
    # And a second or two to start, on a machine that is busy.
    assert int(timeout_s) >= TIMEOUT_S + 2


def test_containers_are_given_longer_than_the_stop_takes():
    graces = [int(seconds) for seconds in re.findall(r"stop_grace_period: (\d+)s", COMPOSE)]
    assert graces
    assert min(graces) * 1000 > Settings().stop_timeout_ms


def test_the_commands_exist():
    commands = re.findall(r'^ +command: \["(\w+)"', COMPOSE, re.MULTILINE)
    assert commands == ["ingest", "worker"]
    assert set(commands) <= set(COMMANDS)


def test_redis_neither_forgets_nor_evicts():
    assert re.search(r'--appendonly\n +- "yes"\n', COMPOSE)
    assert re.search(r"--maxmemory-policy\n +- noeviction\n", COMPOSE)


def test_every_package_is_in_the_image():
    packages = {"maskline", *(link.name for link in (ROOT / "maskline").iterdir() if link.is_symlink())}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    files = set(re.findall(r"^COPY (.* )\./$", DOCKERFILE, re.MULTILINE)[0].split())
    assert copied == packages
    assert allowed == packages | files
    assert all((ROOT / name).exists() for name in allowed)
