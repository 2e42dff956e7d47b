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
        _log.info("the spool holds callbacks from before", callbacks=callbacks, left_by_others=adopted)

    def at_risk(self, directory: Path, why: str) -> None:
        """At the start."""
        _log.warning(
            "the spool does not outlive a crash: put it on a volume", directory=str(directory), reason=why
        )

    def spooling(self, reason: str) -> None:
        if self._since is None:
            self._begin()
            _log.warning("callbacks go to the spool", reason=reason)

    def drained(self, callbacks: int, left: int) -> None:
        now = monotonic()
        self._drained += callbacks
        if not left:
            lasted_s = round(now - (now if self._since is None else self._since), 1)
            _log.info("the spool is drained", callbacks=self._drained, lasted_s=lasted_s)
            self._since = None
        elif now >= self._progress_at:
            self._progress_at = now + PROGRESS_INTERVAL_S
            _log.info("the spool is being drained", callbacks=self._drained, left=left)

    def refused(self, code: str, callbacks: int) -> None:
        _log.warning("Redis refuses spooled callbacks, they are kept", reason=code, callbacks=callbacks)

    def unwell(self, error: SpoolError) -> None:
        _log.error("the spool cannot take callbacks", code=error.code, reason=error.detail)

    def well(self) -> None:
        _log.info("the spool can take callbacks again")

    def damaged(self, name: str) -> None:
        _log.error("a damaged spool file was set aside: recover it with SQLite's tools", file=name)

    def strayed(self, name: str, callbacks: int) -> None:
        _log.error("the spool's file is gone from its path", file=name, callbacks=callbacks)

    def ended(self, name: str, lost: int) -> None:
        if lost:
            _log.error("callbacks were lost with a spool file that was removed", file=name, callbacks=lost)
        else:
            _log.info("a spool file that was gone from its path is done with", file=name)

    def stopped(self, callbacks: int) -> None:
        if callbacks:
            _log.warning("callbacks stay in the spool, the next start takes them up", callbacks=callbacks)

    def hangs(self) -> None:
        _log.error("the spool was not closed, the disk does not answer")

    def _begin(self) -> None:
        self._since = monotonic()
        self._drained = 0
        self._progress_at = self._since + PROGRESS_INTERVAL_S
