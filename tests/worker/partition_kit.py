"""Stream entries, and a partition to take them in."""

from urllib.parse import urlencode

from dispatch_kit import RECEIVED_MS, START_MS

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.counters import Counters
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition, PartitionSettings

GAP_MS = 100
SETTINGS = PartitionSettings("workers", Policy(GAP_MS, 1, 4), False, 86_400)


def fields(**parameters):
    body = urlencode({"EventName": "SessionFirstPartyRinging", "SessionUUID": "s", **parameters}).encode()
    return [CALLBACK_FIELD, encode_callback(RawCallback("POST", b"", FORM_TYPE, body, RECEIVED_MS, "MA1"))]


def entry(milliseconds, **parameters):
    return f"{START_MS + milliseconds}-0".encode(), fields(**parameters)


def make(*, cursor="0-0", entries_read=0, cache=1_000, counters=None, settings=SETTINGS) -> Partition:
    partition = Partition(
        Lease(3, 7, "7 me"), GroupPosition(cursor, entries_read), settings, counters or Counters()
    )
    partition.session_cache = cache
    return partition


def take_in(partition, entries, *, states=None, pending=False, watermark=0):
    decoded = partition.decode(entries, pending=pending, now_ms=START_MS)
    return partition.arrive(decoded, states or {}, START_MS + watermark)


def finish_all(partition):
    finished = []
    while sessions := partition.sessions_with_work():
        for session in sessions:
            release = session.queue[0]
            finished.append(release)
            partition.finish(session, release)
            session.scheduled = bool(session.queue)
    return finished
