"""Errors of the spool's files."""

import errno

from maskline.ingest.outcome import SPOOL_FAILED, SPOOL_FULL
from maskline.schemas.errors import MasklineError


class SpoolError(MasklineError):
    """The disk's fault: a write or a read has failed. `detail`: why, for the operator."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"the spool cannot be used: {detail}")
        self.code = code
        """`spool_full` or `spool_failed`."""
        self.detail = detail


class DamagedError(SpoolError):
    """The file is no readable spool file: SQLite finds it corrupt, or no database."""


def from_os_error(error: OSError) -> SpoolError:
    """The SpoolError for a system call that failed: `spool_full` where the disk or the quota is full."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return SpoolError(SPOOL_FULL if full else SPOOL_FAILED, error.strerror or type(error).__name__)
