import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from servers import RedisServer

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
