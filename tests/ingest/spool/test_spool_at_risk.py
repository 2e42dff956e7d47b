"""A spool that does not outlive a crash is warned of, once, and shown."""

from pathlib import Path

import aiohttp
import pytest
from ingest_kit import node_settings
from structlog.testing import capture_logs

from maskline.ingest.node import IngestNode
from maskline.runtime import disk_mounts

WARNING = "spool not durable"


@pytest.fixture
def spool_on(tmp_path: Path, monkeypatch):
    """The test's directory lies on a file system of this kind."""

    def mount(kind: str) -> Path:
        sample = tmp_path / "mountinfo"
        sample.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path.resolve()} rw - {kind} t rw\n")
        monkeypatch.setattr(disk_mounts, "MOUNTINFO", sample)
        return tmp_path / "spool"

    return mount


@pytest.mark.parametrize(
    ("kind", "options", "warned", "shown"),
    [
        ("tmpfs", {}, True, True),
        ("tmpfs", {"index": 1}, False, True),  # the first of several processes says it for all
        ("tmpfs", {"spool_may_vanish": True}, False, False),
        ("ext4", {}, False, False),
    ],
)
async def test_spool_that_does_not_outlive_a_crash_is_logged_once_and_shown(
    redis_server, namespace, spool_on, kind, options, warned, shown
):
    settings = node_settings(redis_server.url, namespace, spool_dir=spool_on(kind), admin_port=0)
    with capture_logs() as logs:
        node = IngestNode(settings, **options)
        await node.start()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{node.admin_url}/readyz") as response,
            ):
                assert response.status == 200
                spool = (await response.json())["spool"]
        finally:
            await node.stop()
    lines = [entry for entry in logs if entry["event"] == WARNING]
    assert len(lines) == (1 if warned else 0)
    assert all("in memory (tmpfs)" in entry["reason"] for entry in lines)
    assert ("in memory (tmpfs)" in spool.get("at_risk", "")) is shown
