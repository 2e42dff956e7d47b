"""Command lines that end in one clear line when they are wrong."""

import argparse
from typing import NoReturn

from maskline.schemas.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Wrong usage is a ConfigError, which the command line shows as one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        where = f"{command}: " if command else ""
        raise ConfigError(f"{where}{message} (see {self.prog} --help)")
