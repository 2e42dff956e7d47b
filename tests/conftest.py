import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "worker")]

from process_kit import Fleet, fleet  # noqa: E402 - found by the path above
from servers import RedisServer  # noqa: E402 - the same

# Deadlines measure the machine, not the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Valkey that tests share: keep to the fixture `namespace`, and never stop it."""
    server = RedisServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Valkey of the test's own, to kill and restart."""
    server = RedisServer(tmp_path / "valkey").start()
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
