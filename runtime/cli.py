"""Parses command lines; a wrong one ends the command with one clear line."""

import argparse
from typing import NoReturn

from maskline.schemas.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError for wrong usage: one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with the message and the command's name."""
        command = self.prog.partition(" ")[2]
        where = f"{command}: " if command else ""
        raise ConfigError(f"{where}{message} (see {self.prog} --help)")
