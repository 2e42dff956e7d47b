"""The Lua scripts of `lua/` by name: their sources, and the SHA-1 by which a server that has loaded one runs it.

A line `-- include part_x.lua` stands for that file: a part of a script has a name that begins so, and is none itself.
"""

import hashlib
import re
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).with_name("lua")
_INCLUDE: Final = re.compile(rb"^ *-- include (part_\w+\.lua)\n", re.MULTILINE)


def _read(file: Path) -> bytes:
    return _INCLUDE.sub(lambda include: _read(_FOLDER / include[1].decode()), file.read_bytes())


SOURCES: Final = {
    file.stem: _read(file) for file in sorted(_FOLDER.glob("*.lua")) if not file.name.startswith("part_")
}

SHA: Final = {
    name: hashlib.sha1(source, usedforsecurity=False).hexdigest() for name, source in SOURCES.items()
}
