"""What can go wrong with segments."""

from maskline.schemas.errors import ConfigError, MasklineError


class ArchiveError(MasklineError):
    """A segment could not be written, listed or read: the store is away, slow or full. Trying again may help."""


class DamagedSegmentError(MasklineError):
    """A file that is no whole segment: torn, changed, or of something else. Trying again does not help."""


class ArchiveKeyError(ConfigError):
    """A segment is encrypted, and MASKLINE_ARCHIVE_KEY has not its key."""
