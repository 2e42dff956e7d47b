"""Plans which spool notices are due (`schemas.spool_notices`). Pure: the clock is passed in.

| of a partition | this node | then |
| --- | --- | --- |
| it holds callbacks | has not said so over the present connection | says so: after an outage before anything else |
| it holds callbacks | has said so NOTICE_REPEAT_MS ago | says so again |
| it holds none any more | has said that it does | says that it holds none |
| | was refused | tries again after RETRY_S |

While there is no connection to a partition's server, nothing is due.
"""

from collections.abc import Callable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from maskline.schemas.spool_notices import NOTICE_REPEAT_MS

RETRY_S: Final = 1.0
"""After a notice that the server refused: it may be out of memory, or replaced by another one."""

_REPEAT_S: Final = NOTICE_REPEAT_MS / 1000

Link = TypeVar("Link")
"""A connection; here only compared."""


class DueNotice(NamedTuple, Generic[Link]):
    """A notice to write now."""

    partition: int
    link: Link
    held_ms: int | None
    """For how long callbacks of the partition have been held; None: none are held any more."""


class NoticePlanner(Generic[Link]):
    """What one node has said, by partition. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[Link, float]] = {}
        """Over which connection it was last said that callbacks are held, and when to say it again."""
        self._refused: dict[int, tuple[Link, float]] = {}
        """Over which connection a notice was refused, and when to try again."""

    @property
    def said(self) -> int:
        """Of how many partitions the node has said that it holds callbacks."""
        return len(self._said)

    def plan(
        self, held_ms: Mapping[int, int], link_of: Callable[[int], Link | None], now: float
    ) -> list[DueNotice[Link]]:
        """The notices that are due, which count as written.

        `held_ms`: the partitions with callbacks, and for how long, in ms. `link_of`: the connection to a partition's
        server, None while there is none.
        """
        due: list[DueNotice[Link]] = []
        for partition in held_ms.keys() | self._said.keys():
            link, said = link_of(partition), self._said.get(partition)
            if link is None or self._must_wait(partition, link, now):
                continue
            age_ms = held_ms.get(partition)
            if age_ms is None:
                del self._said[partition]
            elif said is None or said[0] is not link or now >= said[1]:
                self._said[partition] = link, now + _REPEAT_S
            else:
                continue
            due.append(DueNotice(partition, link, age_ms))
        return due

    def refused(self, notice: DueNotice[Link], now: float) -> None:
        """The server has refused a notice: it is due again later, or over another connection."""
        self._said[notice.partition] = notice.link, now
        self._refused[notice.partition] = notice.link, now + RETRY_S

    def _must_wait(self, partition: int, link: Link, now: float) -> bool:
        refused = self._refused.get(partition)
        if refused is None:
            return False
        if refused[0] is link and now < refused[1]:
            return True
        del self._refused[partition]
        return False
