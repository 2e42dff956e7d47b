"""Handler modules with signal handlers of their own, in real workers."""

import pytest
from process_kit import PATIENCE_S, fleet
from servers import wait_until

TAKING = """
import asyncio, contextlib, os, signal, sys
from maskline import on, resource

def theirs(*_):
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write("theirs\\n")
{at_import}

@resource
async def pool():
    {in_resource}
    yield 1

@on.every
async def handle(event, ctx, pool):
    {in_handler}
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write("handled\\n")
"""
LEAVES = "lambda *_: (theirs(), sys.exit(7))"


@pytest.mark.parametrize(
    ("place", "take"),
    [
        ("at_import", "signal.signal(signal.SIGTERM, theirs)"),
        ("in_resource", f"asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, {LEAVES})"),
        ("in_handler", f"asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, {LEAVES})"),
        ("in_handler", f"signal.signal(signal.SIGTERM, {LEAVES})"),
        ("in_handler", "signal.signal(signal.SIGTERM, signal.SIG_IGN); theirs()"),
    ],
)
def test_worker_stops_whatever_its_handler_module_does_with_signals(
    redis_server, namespace, tmp_path, place, take
):
    places = dict.fromkeys(("at_import", "in_resource", "in_handler"), "pass") | {place: take}
    (tmp_path / "taking.py").write_text(TAKING.format(**places))
    with fleet(redis_server, namespace, tmp_path) as it:
        worker = it.start(handlers=tmp_path / "taking.py")
        it.put("s1", 1)
        it.until_drained()
        assert worker.terminate() == 0, worker.log
        assert set(it.record_file.read_text().split()) == {"handled", "theirs"}
        taken = worker.logged("signal taken by other code")
        assert taken is not None
        assert "taking.py" in taken["by"]
        assert worker.logged("worker stopped") is not None


def test_worker_stops_while_a_module_that_ignores_sigterm_is_imported(redis_server, namespace, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(os.environ['RECORD_FILE'], 'w').close()\nfor _ in range(6000): time.sleep(0.01)"
    )
    with fleet(redis_server, namespace, tmp_path) as it:
        worker = it.launch(handlers=tmp_path / "slow.py")
        wait_until(it.record_file.exists, within_s=PATIENCE_S, what="the import to begin")
        assert worker.terminate() == 0
