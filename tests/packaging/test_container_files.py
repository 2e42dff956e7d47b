"""Dockerfile, docker-compose.yml and .dockerignore agree with the code: settings, packages, commands, times."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from maskline.console.commands import COMMANDS
from maskline.console.health import TIMEOUT_S
from maskline.schemas.settings import ADMIN_PORTS, SETTINGS, Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NAMES = {name for setting in SETTINGS for name in (setting.name, f"{setting.name}_FILE")}


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", ".dockerignore", "CONTRIBUTING.md"])
def test_every_setting_that_a_file_names_exists(name):
    found = set(re.findall(r"\bMASKLINE_\w+", (ROOT / name).read_text()))
    assert found <= NAMES


def compose_settings(environ):
    """The settings of the containers: `NAME: value` of the YAML, with ${NAME:-default} and ${NAME:?…} filled in."""

    def fill(match):
        return environ.get(match[1]) or (match[3] if match[2] == ":-" else "")

    pairs = re.findall(r"^ +(MASKLINE_\w+): (.*)$", COMPOSE, re.MULTILINE)
    return {name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", fill, value) for name, value in pairs}


def test_settings_of_the_compose_file_are_valid():
    settings = load_settings(compose_settings({"MASKLINE_AUTH_TOKENS": "MA1:token"}))
    assert settings == Settings(
        redis_url="redis://redis:6379/0",
        auth_tokens=(("MA1", "token"),),
        admin_host="0.0.0.0",  # noqa: S104 - within the network of the containers
    )
    assert f'"8080:{settings.port}"' in COMPOSE
    assert re.search(rf"^EXPOSE {settings.port}$", DOCKERFILE, re.MULTILINE)


def test_image_sets_no_setting_that_would_override_a_settings_file():
    assert not re.findall(r"^(?!#).*\bMASKLINE_", DOCKERFILE, re.MULTILINE)


def test_default_spool_directory_leads_to_the_volume():
    """The default is a folder of the working directory, which the image makes a link."""
    (workdir,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE.rpartition("\nFROM ")[2], re.MULTILINE)
    (volume,) = re.findall(r"- spool:(\S+)$", COMPOSE, re.MULTILINE)
    assert f"ln --symbolic {volume} {workdir}/{Settings().spool_dir}" in DOCKERFILE
    assert f"install --directory --owner maskline --group maskline {volume}" in DOCKERFILE


def test_archive_of_the_docs_lies_where_the_image_s_user_may_write():
    page = (ROOT / "docs" / "modules" / "archive.md").read_text()
    (volume,) = re.findall(r"- archive:(\S+)", page)
    (owned,) = re.findall(r"install --directory --owner maskline --group maskline (.+) \\", DOCKERFILE)
    assert volume in owned.split()


def test_admin_ports_are_exposed_to_the_containers_and_never_published():
    services = dict(re.findall(r"^  (ingest|worker):\n((?:    .*\n|\n)+)", COMPOSE, re.MULTILINE))
    for command, port in ADMIN_PORTS.items():
        assert re.search(rf'^    expose:\n      - "{port}"$', services[command], re.MULTILINE)
        assert "MASKLINE_ADMIN_HOST: 0.0.0.0" in services[command]
        published = re.findall(r"^    ports:\n((?:      - .*\n)+)", services[command], re.MULTILINE)
        assert not any(str(port) in entry for port in ADMIN_PORTS.values() for entry in published)
    assert not re.search(r"^EXPOSE .*90", DOCKERFILE, re.MULTILINE)


def test_health_check_runs_maskline_health_and_waits_longer_than_it_takes():
    ((options, command),) = re.findall(r"^HEALTHCHECK (.*)CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == ["maskline", "health"]
    assert "health" in COMMANDS
    (timeout_s,) = re.findall(r"--timeout=(\d+)s", options)
    # A busy machine needs a second or two to start the command.
    assert int(timeout_s) >= TIMEOUT_S + 2


def test_containers_are_stopped_more_slowly_than_maskline_stops():
    graces = [int(seconds) for seconds in re.findall(r"stop_grace_period: (\d+)s", COMPOSE)]
    assert graces
    assert min(graces) * 1000 > Settings().stop_timeout_ms


def test_commands_of_the_compose_file_exist():
    commands = re.findall(r'^ +command: \["(\w+)"', COMPOSE, re.MULTILINE)
    assert commands == ["ingest", "worker"]
    assert set(commands) <= set(COMMANDS)


def test_redis_persists_and_never_evicts():
    assert re.search(r'--appendonly\n +- "yes"\n', COMPOSE)
    assert re.search(r"--maxmemory-policy\n +- noeviction\n", COMPOSE)


def test_build_context_holds_every_package_and_what_builds_them():
    """`COPY . .` copies what .dockerignore lets through, so nothing else may be let through."""
    assert re.search(r"^COPY \. \.$", DOCKERFILE, re.MULTILINE)
    packages = {"maskline", *(path.name for path in (ROOT / "maskline").iterdir() if path.is_dir())}
    build_files = {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"}
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert allowed == (packages | build_files) - {"__pycache__"}


def test_image_has_what_the_handler_modules_that_ship_need():
    (installed,) = re.findall(r"pip install \"\.\[([\w,]+)\]\"", DOCKERFILE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(installed.split(",")) == set(extras) - {"dev", "embedded", "reload"}


def test_packages_of_the_users_are_installed_by_a_build_argument():
    assert re.search(r'^ARG PACKAGES=""$', DOCKERFILE, re.MULTILINE)
    assert re.search(r"^      PACKAGES: \$\{PACKAGES:-\}$", COMPOSE, re.MULTILINE)


def test_image_is_not_built_without_the_c_extensions():
    assert re.search(
        r"^RUN .*REQUIRE_MASKLINE_C=1 .*pip install \"\.\[[\w,]+\]\" \$PACKAGES$", DOCKERFILE, re.MULTILINE
    )
