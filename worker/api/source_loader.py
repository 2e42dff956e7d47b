"""Loads a module from its source, whatever bytecode of it is cached.

Python takes cached bytecode for current where the source has the same size, and a modification time of the same second.
So a change within a second of an import, as editing by hand and tests make them, could be missed.
"""

from importlib.machinery import SourceFileLoader
from types import CodeType


class SourceLoader(SourceFileLoader):
    """Compiles the source at every import, and writes no bytecode: milliseconds for a module of the usual size."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module. Raises SyntaxError, and OSError if the file cannot be read."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code
