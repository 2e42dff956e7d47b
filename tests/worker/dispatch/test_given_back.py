"""A partition that is given back: the next owner goes on where this one stops."""

import pytest
from dispatch_kit import dispatching, every, until

from maskline.worker.commands.retry_ops import Append
from maskline.worker.entries.queue_item import decode_item
from maskline.worker.poison.tracker import Suspects

FOR_EVER_MS = 1_900
"""As long as an event waits in a worker for its next attempt, nearly."""


@pytest.mark.parametrize("suspect", [False, True], ids=["ordinary", "suspect"])
async def test_event_between_two_attempts_is_set_aside_for_the_handler_that_failed_alone(
    suspect, monkeypatch
):
    """A suspect is no exception: its last owner died, and this one gives it back in peace."""
    monkeypatch.setattr("random.random", lambda: 0.9)  # the jitter of the wait
    calls = []

    @every(name="done")
    async def done(event, ctx):
        calls.append("done")

    @every(name="failing", backoff_ms=FOR_EVER_MS, backoff_max_ms=FOR_EVER_MS)
    async def failing(event, ctx):
        calls.append("failing")
        raise RuntimeError("not now")

    async with dispatching(done, failing) as it:
        if suspect:
            it.partition.suspects = Suspects(unclean=True, last_id="9999999999999-0", found=())
        (session,) = it.feed(("s", 1))
        await until(lambda: session.progress is not None and session.progress.attempts)
        assert bool(it.partition.suspects) is suspect
        it.dispatcher.finisher.set_aside_unfinished(it.partition)
        commit = it.partition.take_commit()
    assert calls == ["done", "failing"]
    (aside,) = commit.retry_ops
    assert isinstance(aside, Append)
    assert (aside.handler, aside.session) == ("failing", "s")
    assert decode_item(aside.item).attempts == 1
    assert it.partition.unfinished == 0
