"""The retry queues of a session in a worker's memory.

A retry queue has the events of one session that wait for one handler, the oldest first. Redis keeps it; the session's
state names the handlers that have one (`SessionRetries`), so that later events of the session go behind. Only a queue
that is being run is in memory, as a `RetryQueue`, with its first items.
"""

from collections.abc import Mapping
from typing import Final

from maskline.worker.entries.queue_item import QueueItem
from maskline.worker.ordering.reorder import Release
from maskline.worker.ordering.state import NEW_SESSION, SKIPPED_MAX, HandlerRetries, SessionState
from maskline.worker.partitions.session import LiveSession, Progress

_NONE: Final = HandlerRetries()


class SessionRetries:
    """The retry queues of one session, and the numbers that its handlers have never handled."""

    __slots__ = ("_by_handler", "joined", "running", "settled")

    def __init__(self, settled: SessionState, by_handler: Mapping[str, HandlerRetries]) -> None:
        self.settled = settled
        """The session's order after the last event that is done: what is stored with the queues."""
        self._by_handler = dict(by_handler)
        self.running: set[str] = set()
        """Handlers whose queue is in memory."""
        self.joined: set[str] = set()
        """Handlers whose queue began while the session had an event under way, which is not done yet."""

    def __getitem__(self, handler: str) -> HandlerRetries:
        return self._by_handler.get(handler, _NONE)

    def finished(self, state: SessionState) -> None:
        """An event of the session is done; `state`: its order after that."""
        self.settled = state
        self.joined.clear()

    def blocks(self, handler: str) -> bool:
        """Whether the handler's events of this session must go behind others."""
        retries = self._by_handler.get(handler)
        return retries is not None and retries.blocks

    @property
    def blocked(self) -> bool:
        """Whether any handler's events must go behind others: then the state must not expire."""
        return any(one.blocks for one in self._by_handler.values())

    def stored(self) -> dict[str, HandlerRetries] | None:
        """What the session's state has of them; None if nothing is left."""
        return dict(self._by_handler) or None

    def add(self, handler: str, waiting: int) -> None:
        """Add to the number of items that a queue has."""
        self._set(handler, waiting=max(self[handler].waiting + waiting, 0))

    def park(self, handler: str, number: int | None) -> None:
        """Park a queue behind the dead letter of this number, which the handler has not handled."""
        self._set(handler, parked=True)
        self.skip(handler, number)

    def unpark(self, handler: str) -> None:
        """Let a queue go on."""
        self._set(handler, parked=False)

    def skip(self, handler: str, number: int | None) -> None:
        """Remember a number that the handler has not handled; None if its event has no number."""
        if number is not None:
            before = tuple(one for one in self[handler].skipped if one != number)
            self._set(handler, skipped=(*before, number)[-SKIPPED_MAX:])

    def handled(self, handler: str, number: int | None) -> None:
        """Forget a skipped number, which the handler handles after all."""
        skipped = self[handler].skipped
        if number in skipped:
            self._set(handler, skipped=tuple(one for one in skipped if one != number))

    def _set(
        self,
        handler: str,
        *,
        waiting: int | None = None,
        parked: bool | None = None,
        skipped: tuple[int, ...] | None = None,
    ) -> None:
        now = self[handler]
        after = HandlerRetries(
            now.waiting if waiting is None else waiting,
            now.parked if parked is None else parked,
            now.skipped if skipped is None else skipped,
        )
        if after == _NONE:
            self._by_handler.pop(handler, None)
        else:
            self._by_handler[handler] = after


class RetryQueue(LiveSession):
    """The first items of a retry queue while they are run. The dispatcher runs it like a session.

    `session`: whose events they are. `takes`: how often the queue was taken without the end being committed, this time
    included: more than once, and its handler may have crashed a worker.
    """

    __slots__ = ("handler", "items", "session", "takes")

    def __init__(self, session: LiveSession, handler: str, takes: int) -> None:
        super().__init__(session.uuid, NEW_SESSION, session.partition)
        self.session = session
        self.retries = session.retries
        self.handler = handler
        self.takes = takes
        self.items: list[QueueItem] = []
        """Those of `queue`, in the same order."""
        self.queue = []

    @property
    def crashes(self) -> int:
        """How often a worker went down, or lost the partition, while it had the queue."""
        return self.takes - 1

    def add(self, item: QueueItem, release: Release) -> None:
        """Add an item that was read, with the release that it stands for."""
        self.items.append(item)
        self.queue.append(release)

    def start_first(self) -> None:
        """Begin with the first item: its failed attempts count."""
        item = self.items[0]
        self.progress = progress = Progress(self.handler)
        if item.attempts:
            progress.attempts[self.handler] = item.attempts
        if item.first_failed_ms is not None:
            progress.first_failed_ms[self.handler] = item.first_failed_ms
