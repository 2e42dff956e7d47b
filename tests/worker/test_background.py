"""When a part of the worker fails, it is restarted and shown, or it ends the process and is named."""

import asyncio
import json
import threading
import time
import urllib.request

import pytest
import recording_handlers
from dispatch_kit import until
from process_kit import PATIENCE_S, Fleet
from structlog.testing import capture_logs

from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings
from maskline.worker.dispatch import watchdog
from maskline.worker.dispatch.watchdog import Watchdog
from maskline.worker.node import WorkerNode


@pytest.fixture
async def node(redis_server, namespace, tmp_path, monkeypatch):
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    settings = Settings(
        redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0, retention_s=0
    )
    it = WorkerNode(settings, handler_modules=[recording_handlers])
    await it.start()
    yield it
    await it.stop()


async def test_failing_retention_is_restarted_and_shown_by_readyz(node, redis_server, monkeypatch):
    real, failures = node.retention._due, []

    def due(owned):
        if len(failures) < 2:
            failures.append(1)
            raise ZeroDivisionError
        return real(owned)

    monkeypatch.setattr(node.retention, "_due", due)
    await until(lambda: node.background.failures["retention"] == 2)
    assert node._state.ready().details["background"] == {"retention": "ZeroDivisionError"}
    with redis_server.client() as client:
        stream = node._keys.callbacks(0)
        client.xadd(stream, {"c": "nothing"})
        await until(lambda: client.xlen(stream) == 0)


PROGRAM = """
import runpy
from maskline.worker.leases import manager
from maskline.worker.streams import poller
async def failing(self):
    raise ZeroDivisionError("odd")
{patch}
runpy.run_module("maskline.worker", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("part", "patch"),
    [
        ("leases", "manager.PartitionManager._renew_leases = failing"),
        ("pollers", "poller.Poller.run = failing"),
    ],
)
def test_failure_of_an_essential_part_ends_the_process_and_is_named(crew: Fleet, part, patch):
    worker = crew.launch(program=PROGRAM.format(patch=patch))
    assert worker.process.wait(PATIENCE_S) == 1
    line = worker.logged("worker part failed")
    assert line is not None, worker.log
    assert line["part"] == part
    assert "ZeroDivisionError" in json.dumps(line)
    assert worker.logged("worker stopped") is not None, "its leases are given back all the same"


async def test_watchdog_without_a_thread_is_shown_and_retried(monkeypatch):
    monkeypatch.setattr(watchdog, "START_INTERVAL_S", 0.05)
    monkeypatch.setattr(watchdog, "CHECK_INTERVAL_S", 0.02)
    background, refused = BackgroundTasks(), []
    real = threading.Thread.start

    def start(thread):
        if len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with capture_logs() as logs:
        dog = Watchdog(lambda: "h", lambda: None, background)
        assert background.failing == {"watchdog": "RuntimeError"}
        await until(lambda: dog._thread is not None and dog._thread.is_alive())
    dog.stop()
    assert background.failures["watchdog"] == 3
    assert [log["task"] for log in logs if log["event"] == "background task failed"] == ["watchdog"]


async def test_watchdog_that_dies_is_shown_and_restarted(monkeypatch):
    monkeypatch.setattr(watchdog, "START_INTERVAL_S", 0.0)
    monkeypatch.setattr(watchdog, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(watchdog, "BLOCKED_AFTER_S", 0.1)
    background, names = BackgroundTasks(), iter([KeyError("odd")])

    def suspect():
        for error in names:
            raise error
        return "h"

    blocks = []
    dog = Watchdog(suspect, lambda: blocks.append("reported"), background)
    time.sleep(0.4)  # noqa: ASYNC251 - this is what it is about
    await until(lambda: background.failures["watchdog"] == 1)
    assert background.failing == {"watchdog": "KeyError"}
    await until(lambda: dog._thread is not None and dog._thread.is_alive())
    time.sleep(0.4)  # noqa: ASYNC251
    await until(lambda: len(blocks) == 2)
    dog.stop()


async def test_metrics_show_background_failures_and_unreadable_values(node):
    node.background.failed("retention", OSError("odd"))
    node.counters.unreadable.update(("EventTimestamp", "EventTimestamp", "Amount"))

    def read():
        with urllib.request.urlopen(f"{node.admin_url}/metrics", timeout=60) as response:  # noqa: S310 our own
            return response.read().decode()

    text = await asyncio.to_thread(read)
    assert 'maskline_worker_background_failures_total{task="retention"} 1.0' in text
    assert 'maskline_worker_unreadable_values_total{attribute="EventTimestamp"} 2.0' in text
