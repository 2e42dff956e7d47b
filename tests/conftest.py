import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "worker")]

from example_counts import examples  # noqa: E402 - found by the path above
from process_kit import Fleet, fleet  # noqa: E402 - the same
from servers import ONLY_SERVER, RedisServer, binary_of, has_waitaof, server_kinds  # noqa: E402 - the same

# Deadlines measure the machine, not the code.
settings.register_profile(
    "default", deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `storage` run on every server, the others on one."""
    if "server_kind" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("storage") is not None
        kinds = server_kinds() if marked else server_kinds()[:1]
        metafunc.parametrize("server_kind", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything that talks to a server is part of the server matrix, as far as the server can do it."""
    for item in items:
        if "server_kind" in getattr(item, "fixturenames", ()):
            item.add_marker("server")
    if ONLY_SERVER and not has_waitaof(binary_of(ONLY_SERVER)):
        beyond = [item for item in items if item.get_closest_marker("waitaof")]
        items[:] = [item for item in items if item not in beyond]
        config.hook.pytest_deselected(items=beyond)


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> str:
    """The server that a test runs on: see `servers.server_kinds`."""
    return str(request.param)


@pytest.fixture(scope="session")
def redis_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests share: keep to the fixture `namespace`, and never stop it."""
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(server_kind)).start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(server_kind: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to kill and restart."""
    server = RedisServer(tmp_path / "valkey", binary=binary_of(server_kind)).start()
    yield server
    server.stop()


@pytest.fixture
def namespace() -> str:
    """A namespace nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def crew(redis_server: RedisServer, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    """A namespace of eight partitions on the shared server, for worker processes."""
    with fleet(redis_server, namespace, tmp_path) as it:
        yield it


@pytest.fixture
def own_crew(own_redis: RedisServer, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    """The same on a server of the test's own."""
    with fleet(own_redis, namespace, tmp_path) as it:
        yield it
