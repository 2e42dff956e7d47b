"""The container files against the code: names and values of settings, packages, commands, times."""

import re
import tomllib
from pathlib import Path

import pytest

from console.commands import COMMANDS
from schemas.settings import SETTINGS, Settings, load_settings

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
    image = dict(re.findall(r"\b(MASKLINE_\w+)=(\S+)", DOCKERFILE))
    settings = load_settings(image | compose_settings({"MASKLINE_AUTH_TOKENS": "MA1:token"}))
    assert settings == Settings(
        redis_url="redis://redis:6379/0",
        auth_tokens=(("MA1", "token"),),
        admin_port=9090,
        spool_dir=Path("/var/lib/maskline/spool"),
    )
    assert f"- spool:{settings.spool_dir}" in COMPOSE
    assert f'"8080:{settings.port}"' in COMPOSE
    assert re.search(rf"^EXPOSE {settings.port}$", DOCKERFILE, re.MULTILINE)


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    files = set(re.findall(r"^COPY (.* )\./$", DOCKERFILE, re.MULTILINE)[0].split())
    assert copied == packages
    assert allowed == packages | files
    assert all((ROOT / name).exists() for name in allowed)
