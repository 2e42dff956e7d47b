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
        """Log that the spool has callbacks at the start, some of them in `adopted` files of dead processes."""
        self._begin()
        _log.info("spooled callbacks found", callbacks=callbacks, left_by_others=adopted)

    def at_risk(self, directory: Path, why: str) -> None:
        """Log at the start that the directory does not outlive a crash; `why`: the reason, for the operator."""
        _log.warning("spool not durable", directory=str(directory), reason=why)

    def spooling(self, reason: str) -> None:
        """Log that callbacks are spooled, for this reason; only the first time since the spool was empty."""
        if self._since is None:
            self._begin()
            _log.warning("spooling started", reason=reason)

    def drained(self, callbacks: int, left: int) -> None:
        """Count drained callbacks; log them and those left now and then, and at the end."""
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
        """Log that Redis refused callbacks of a page; they stay in the spool."""
        _log.warning("spooled callbacks refused", reason=code, callbacks=callbacks)

    def failed(self, error: SpoolError) -> None:
        """Log that the spool takes no callbacks."""
        _log.error("spool failed", code=error.code, reason=error.detail)

    def recovered(self) -> None:
        """Log that the spool takes callbacks again."""
        _log.info("spool recovered")

    def damaged(self, name: str) -> None:
        """Log that a damaged file was set aside under this name."""
        _log.error("spool file damaged", file=name)

    def displaced(self, name: str, callbacks: int) -> None:
        """Log that a file with this many callbacks is gone from its path."""
        _log.error("spool file displaced", file=name, callbacks=callbacks)

    def displaced_closed(self, name: str, lost: int) -> None:
        """Log that a displaced file was closed, and how many callbacks are lost with it."""
        if lost:
            _log.error("spooled callbacks lost", file=name, callbacks=lost)
        else:
            _log.info("displaced spool file closed", file=name)

    def stopped(self, callbacks: int) -> None:
        """Log how many callbacks stay in the spool for the next start."""
        if callbacks:
            _log.warning("callbacks left in spool", callbacks=callbacks)

    def not_closed(self) -> None:
        """Log that the files could not be closed at the stop, as the disk does not answer."""
        _log.error("spool not closed")

    def _begin(self) -> None:
        self._since = monotonic()
        self._drained = 0
        self._progress_at = self._since + PROGRESS_INTERVAL_S
