"""What a handler gets beside the event."""

import msgspec
from dispatch_kit import START_MS, partition_of_test
from structlog.testing import capture_logs

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.api.context import Context

BODY = b"EventName=SessionTimeout&SessionUUID=s&SequenceNumber=1"


def release_of(*, replayed=False):
    callback = RawCallback("POST", b"a=%20b", FORM_TYPE, BODY, START_MS, "MA1")
    if replayed:
        callback = msgspec.structs.replace(callback, replayed=True)
    partition = partition_of_test()
    entry = (f"{START_MS}-0".encode(), [CALLBACK_FIELD, encode_callback(callback)])
    (session,) = partition.arrive(partition.decode([entry], pending=False, now_ms=START_MS), {}, START_MS)
    return session.queue[0]


def test_an_ordinary_event_skips_nothing_and_is_no_replay():
    ctx = Context(release_of(), "h", 1, 7)
    assert (ctx.skipped, ctx.replayed, ctx.attempt, ctx.fencing_token) == ((), False, 1, 7)


def test_a_replay_is_known_by_its_entry():
    assert Context(release_of(replayed=True), "h", 1, 7).replayed is True


def test_the_log_says_of_a_replay_that_it_is_one_and_nothing_of_others():
    with capture_logs() as lines:
        Context(release_of(), "h", 2, 7).log.info("seen")
        Context(release_of(replayed=True), "h", 2, 7, skipped=(3, 4)).log.info("seen again")
    ordinary, replayed = lines
    assert (ordinary["handler"], ordinary["attempt"], ordinary["sequence_number"]) == ("h", 2, 1)
    assert "replayed" not in ordinary
    assert replayed["replayed"] is True


def test_the_callback_is_what_ingest_received_byte_for_byte():
    callback = Context(release_of(), "h", 1, 7).callback
    assert callback == RawCallback("POST", b"a=%20b", FORM_TYPE, BODY, START_MS, "MA1")
    assert "SessionTimeout" not in repr(callback)
