"""What goes wrong with the spool's files."""

import errno

from maskline.ingest.outcome import SPOOL_FAILED, SPOOL_FULL
from maskline.schemas.errors import MasklineError


class SpoolError(MasklineError):
    """The disk's fault: what was to be written or read was not."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"the spool cannot be used: {detail}")
        self.code = code
        """`spool_full` or `spool_failed`."""
        self.detail = detail


class DamagedError(SpoolError):
    """The file is no journal of ours any more."""


def of_the_system(error: OSError) -> SpoolError:
    """What a call of the system that failed means for the spool."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return SpoolError(SPOOL_FULL if full else SPOOL_FAILED, error.strerror or type(error).__name__)
