"""Kinds of values that the settings of `handlers.archive` have."""

import base64
import binascii
from typing import Final

from maskline.schemas.settings.value_types import Kind, comma_list

ARCHIVE_SCHEMES: Final = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "file", "memory")
"""Those of object stores that obstore opens; `http://` is left out, as such a store lists nothing."""


def _read_archive_url(text: str) -> str:
    text = text.strip()
    if not text.isprintable() or not text:
        raise ValueError
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ARCHIVE_SCHEMES:
        raise ValueError
    if separator and ("@" in rest.partition("/")[0] or "?" in rest):
        raise ValueError("credentials and options come from the environment, as AWS_ACCESS_KEY_ID")
    if separator and scheme not in {"file", "memory"} and not rest.strip("/"):
        raise ValueError("it names no bucket")
    return text


ARCHIVE_URL: Final = Kind(
    "a folder, or a URL such as s3://bucket/prefix, gs://bucket or az://account/container", _read_archive_url
)

ARCHIVE_KEY_BYTES: Final = 32
"""AES-256."""


def _read_archive_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError from None
    if len(key) != ARCHIVE_KEY_BYTES:
        raise ValueError(f"it has {len(key)} bytes")
    return key


ARCHIVE_KEYS: Final = comma_list(
    f"{ARCHIVE_KEY_BYTES} bytes in base64, as `openssl rand -base64 {ARCHIVE_KEY_BYTES}` prints; several "
    "comma-separated",
    _read_archive_key,
    lambda _key: "***",
    secret=True,
)
