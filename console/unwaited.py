"""Standard output for what also works while it shows: a stopped terminal or an unread pipe holds nothing up."""

import atexit
from typing import TextIO

from runtime.line_writer import LineWriter


class Unwaited:
    """Writes to `stream` what it takes at once, queues the rest within bounds, and says what was left out.

    Raises BrokenPipeError once the reader is gone, as the stream itself would.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._writer = LineWriter(
            stream, lambda count: b"(%d lines were left out: nobody read them)\n" % count
        )
        atexit.register(self._writer.finish)

    def write(self, text: str, /) -> int:
        self._writer.write(text.encode("utf-8", "backslashreplace"))
        if self._writer.broken:
            raise BrokenPipeError
        return len(text)

    def flush(self) -> None:
        """What went is written; nobody waits for the rest."""

    def isatty(self) -> bool:
        return self._stream.isatty()
