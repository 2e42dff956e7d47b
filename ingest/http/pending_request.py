"""A request that awaits the outcome of its callback."""

from typing import Protocol

from maskline.ingest.outcome import NotStoredError


class OutcomeReceiver(Protocol):
    """The connection of a pending request."""

    def on_outcome(self, request: "PendingRequest", error: NotStoredError | None) -> None:
        """Answer the request: its callback is stored (None), or will not be (`error`)."""

    def fail(self, error: Exception) -> None:
        """Close the connection, as `on_outcome` raised an error, which is a fault in maskline."""


class PendingRequest:
    """A maskline.ingest.outcome.Completion that answers a request, without a future.

    One object for each request: an outcome that comes late must not answer the next request. Completing it raises
    nothing: the publisher completes others after it, and they would wait for ever.
    """

    __slots__ = ("_connection", "closes", "data")

    def __init__(self, connection: OutcomeReceiver, data: bytes, closes: bool) -> None:
        self._connection: OutcomeReceiver | None = connection
        self.data = data
        """The bytes that it was read from; they begin with its head."""
        self.closes = closes
        """Whether the connection ends with it."""

    def done(self) -> bool:
        """Whether it was completed."""
        return self._connection is None

    def set_result(self, _: None, /) -> None:
        """The callback is stored: answer 200."""
        self._complete(None)

    def set_exception(self, exception: NotStoredError, /) -> None:
        """The callback is stored nowhere: answer 503."""
        self._complete(exception)

    def _complete(self, error: NotStoredError | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.on_outcome(self, error)
            except Exception as fault:  # noqa: BLE001 - any fault of this connection's, see above
                connection.fail(fault)
