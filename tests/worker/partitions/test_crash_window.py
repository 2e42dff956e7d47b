"""What may come again after a kill: the events of the last moments, however steadily others went on being handled."""

import time

import pytest
from process_kit import Fleet
from servers import wait_until

from maskline.schemas.keys import partition_of
from maskline.worker.partitions.commit_pace import COMMIT_WINDOW_MAX_S

LOADED = 20
"""A loaded machine may let the worker, or the server, stand for many times the window."""

TRICKLE_S = 1.5 * LOADED * COMMIT_WINDOW_MAX_S

pytestmark = pytest.mark.server


def test_events_handled_before_the_crash_window_are_committed_at_a_kill(crew: Fleet):
    worker = crew.start(lease_ttl_ms=60_000)
    count, end = 0, time.monotonic() + TRICKLE_S
    while time.monotonic() < end:
        crew.put(f"s{count}", 1)
        count += 1
        time.sleep(0.002)  # callbacks come one by one, so that each commit but the first is waited for
    wait_until(lambda: len(crew.calls()) >= count / 2, what="the worker to keep up")
    killed_at = time.monotonic()
    worker.kill()
    uncommitted = [crew.uncommitted(partition) for partition in range(crew.partitions)]
    ages = [
        killed_at - call.end
        for call in crew.calls()
        if uncommitted[partition_of(call.session, crew.partitions)](call.entry_id)
    ]
    assert max(ages, default=0.0) <= LOADED * COMMIT_WINDOW_MAX_S
    assert len(ages) < len(crew.calls()) / 2, "most were handled before"
