"""Which publisher has a partition. The only place that knows: today one server has them all."""

from collections.abc import Sequence

from ingest.publisher import Publisher


class Outlets:
    """The ways to Redis."""

    __slots__ = ("_only", "publishers")

    def __init__(self, publisher: Publisher) -> None:
        self._only = publisher
        self.publishers: Sequence[Publisher] = (publisher,)

    def of(self, _route: int) -> Publisher:
        """The publisher that has the partition of this route."""
        return self._only

    @property
    def ready(self) -> bool:
        """Whether any of them takes callbacks."""
        return any(publisher.ready for publisher in self.publishers)

    @property
    def worth_a_try(self) -> bool:
        """Whether any of them takes callbacks, or may be probed."""
        return any(publisher.ready or publisher.probe_due for publisher in self.publishers)
