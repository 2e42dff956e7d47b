"""Watches an import that takes long: says where it is after a second, and ends the process if it hangs."""

import os
import sys
import threading
from types import TracebackType
from typing import Any, Final, Self

from maskline.console.output import note
from maskline.worker.api.places import Place, is_users

NOTED_AFTER_S: Final = 1.0
_EXIT_USAGE: Final = 2


class SlowImportWatch:
    """A context manager around imports. After `limit_s` seconds the process ends with 2 and one line that names the
    user's line that runs, also where the import waits for ever.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slow import watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before_s = min(NOTED_AFTER_S, self._limit_s)
        if self._over.wait(before_s):
            return
        if self._limit_s > before_s:
            note(f"importing, now at {self._line().shown or 'code of a library'} …")
            if self._over.wait(self._limit_s - before_s):
                return
        where = self._line().shown
        note(
            f"{where}{': ' if where else ''}the import has not ended after {self._limit_s:g} s;"
            " move what waits out of the module's level, into a @resource or a handler"
        )
        os._exit(_EXIT_USAGE)

    def _line(self) -> Place:
        """The innermost line of the user's that the importing thread is at."""
        frame: Any = sys._current_frames().get(self._thread_id)  # noqa: SLF001  the documented way to it
        while frame is not None:
            command = frame.f_globals.get("__name__") == "__main__"  # the script that runs maskline
            if not command and is_users(frame.f_code.co_filename):
                return Place(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return Place()
