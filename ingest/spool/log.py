"""What the log says of the spool: when it begins to be used, how the drain goes on, when it is empty, when it fails."""

from pathlib import Path
from time import monotonic
from typing import Final

from maskline.ingest.spool.errors import SpoolError
from maskline.runtime.logs import get_logger

PROGRESS_INTERVAL_S: Final = 5.0

_log = get_logger("maskline.ingest")


class SpoolLog:
    """One line when something changes, and few between."""

    def __init__(self) -> None:
        self._since: float | None = None
        """When callbacks began to lie in the spool; None while none do."""
        self._drained = 0
        self._progress_at = 0.0

    def found(self, callbacks: int, adopted: int) -> None:
        """At the start."""
        self._begin()
        _log.info("spooled callbacks found", callbacks=callbacks, left_by_others=adopted)

    def at_risk(self, directory: Path, why: str) -> None:
        """At the start."""
        _log.warning("spool not durable", directory=str(directory), reason=why)

    def spooling(self, reason: str) -> None:
        if self._since is None:
            self._begin()
            _log.warning("spooling started", reason=reason)

    def drained(self, callbacks: int, left: int) -> None:
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
        _log.warning("spooled callbacks refused", reason=code, callbacks=callbacks)

    def unwell(self, error: SpoolError) -> None:
        _log.error("spool failed", code=error.code, reason=error.detail)

    def well(self) -> None:
        _log.info("spool recovered")

    def damaged(self, name: str) -> None:
        _log.error("spool file damaged", file=name)

    def strayed(self, name: str, callbacks: int) -> None:
        _log.error("spool file displaced", file=name, callbacks=callbacks)

    def ended(self, name: str, lost: int) -> None:
        if lost:
            _log.error("spooled callbacks lost", file=name, callbacks=lost)
        else:
            _log.info("displaced spool file closed", file=name)

    def stopped(self, callbacks: int) -> None:
        if callbacks:
            _log.warning("callbacks left in spool", callbacks=callbacks)

    def hangs(self) -> None:
        _log.error("spool not closed")

    def _begin(self) -> None:
        self._since = monotonic()
        self._drained = 0
        self._progress_at = self._since + PROGRESS_INTERVAL_S
