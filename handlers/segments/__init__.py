"""Segments: files of archived callbacks, how they are written so that none is lost, and how they are read.

docs/modules/archive.md describes the format, and says why it is as it is.
"""

from importlib.util import find_spec

from maskline.schemas.errors import ConfigError

if missing := [name for name in ("cryptography", "zstandard") if find_spec(name) is None]:
    raise ConfigError(f"an archive needs {' and '.join(missing)}: pip install 'maskline[archive]'")
