"""What may come again after a kill: the events of the last moments, however steadily others went on being handled."""

import time

import pytest
from process_kit import PATIENCE_S, Fleet

from maskline.schemas.keys import partition_of
from maskline.worker.partitions.commit_pace import COMMIT_WINDOW_MAX_S

LOADED = 20
"""A loaded machine may let the worker, or the server, stand for many times the window."""

WINDOW_S = LOADED * COMMIT_WINDOW_MAX_S

OLD_MIN = 100
"""Events that must have been handled before the window: they are committed, or the test fails."""

pytestmark = pytest.mark.server


def test_events_handled_before_the_crash_window_are_committed_at_a_kill(crew: Fleet):
    worker = crew.start(lease_ttl_ms=60_000)
    crew.until_balanced(1)
    count, end = 0, time.monotonic() + PATIENCE_S
    while sum(call.end < time.monotonic() - WINDOW_S for call in crew.calls()) < OLD_MIN:
        assert time.monotonic() < end, "the worker handles next to nothing"
        crew.put(f"s{count}", 1)
        count += 1
        time.sleep(0.005)  # callbacks come one by one, so that each commit but the first is waited for
    killed_at = time.monotonic()
    worker.kill()
    uncommitted = [crew.uncommitted(partition) for partition in range(crew.partitions)]
    ages = [
        killed_at - call.end
        for call in crew.calls()
        if uncommitted[partition_of(call.session, crew.partitions)](call.entry_id)
    ]
    assert max(ages, default=0.0) <= WINDOW_S
