"""The log lines of the spool: when it is first used, how the drain progresses, when it is empty, when it fails."""

from pathlib import Path
from time import monotonic
from typing import Final

from maskline.ingest.spool.errors import SpoolError
from maskline.runtime.logs import get_logger

PROGRESS_INTERVAL_S: Final = 5.0
"""Between two log lines about the drain's progress."""

_log = get_logger("maskline.ingest")


class SpoolLog:
    """Logs one line when something changes, and few in between."""

    def __init__(self) -> None:
        self._since: float | None = None
        """When the spool was first used since it was empty, by the monotonic clock; None while it is empty."""
        self._drained = 0
        self._progress_at = 0.0

    def found(self, callbacks: int, adopted: int) -> None:
        """At the start there are callbacks in the spool, in `adopted` files of dead processes among others."""
        self._begin()
        _log.info("spooled callbacks found", callbacks=callbacks, left_by_others=adopted)

    def at_risk(self, directory: Path, why: str) -> None:
        """At the start: the directory does not outlive a crash; `why`, for the operator."""
        _log.warning("spool not durable", directory=str(directory), reason=why)

    def spooling(self, reason: str) -> None:
        """Callbacks are spooled, for this reason; logged only the first time since the spool was empty."""
        if self._since is None:
            self._begin()
            _log.warning("spooling started", reason=reason)

    def drained(self, callbacks: int, left: int) -> None:
        """So many callbacks were drained, and so many are left; logged now and then, and at the end."""
        now = monotonic()
        self._drained += callbacks
        if not left:
            lasted_s = round(now - (now if self._since is None else self._since), 1)
            _log.info("spool drained", callbacks=self._drained, lasted_s=lasted_s)
            self._since = None
        elif now >= self._progress_at:
            self._progress_at = now + PROGRESS_INTERVAL_S
            _log.info("spool draining", callbacks=self._drained, left=left)

    def refused(self, code: str, callbacks: int) -> None:
        """Redis refused callbacks of a page; they stay in the spool."""
        _log.warning("spooled callbacks refused", reason=code, callbacks=callbacks)

    def failed(self, error: SpoolError) -> None:
        """The spool takes no callbacks."""
        _log.error("spool failed", code=error.code, reason=error.detail)

    def recovered(self) -> None:
        """The spool takes callbacks again."""
        _log.info("spool recovered")

    def damaged(self, name: str) -> None:
        """A damaged file was set aside under this name."""
        _log.error("spool file damaged", file=name)

    def displaced(self, name: str, callbacks: int) -> None:
        """A file with so many callbacks is gone from its path."""
        _log.error("spool file displaced", file=name, callbacks=callbacks)

    def displaced_closed(self, name: str, lost: int) -> None:
        """A displaced file was closed; so many callbacks are lost with it."""
        if lost:
            _log.error("spooled callbacks lost", file=name, callbacks=lost)
        else:
            _log.info("displaced spool file closed", file=name)

    def stopped(self, callbacks: int) -> None:
        """The process stops, and so many callbacks stay in the spool for the next start."""
        if callbacks:
            _log.warning("callbacks left in spool", callbacks=callbacks)

    def not_closed(self) -> None:
        """The disk does not answer at the stop, so the files could not be closed."""
        _log.error("spool not closed")

    def _begin(self) -> None:
        self._since = monotonic()
        self._drained = 0
        self._progress_at = self._since + PROGRESS_INTERVAL_S
