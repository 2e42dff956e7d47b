"""Reloads the handlers of `maskline dev` when their sources change.

| what | follows |
| --- | --- |
| a file that is loaded, or a new one, has another content | all modules of the user's are imported anew |
| they load, and the new resources open | a worker with them takes the old one's place (`worker_slot`) |
| a mistake in them, or a resource that cannot be opened | one line says where; the version before goes on |
| another change while that is so | the next try |

A load that fails is tried once more after SAVING_S: the file may have been half written. It is imported on the event
loop, in the main thread, as at the start: a module may install signal handlers there, or ask for the running loop.
"""

import asyncio
import contextvars
import decimal
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Final

from maskline.console.reload.fresh_import import SetAside, default_metrics, sources_compiled
from maskline.console.reload.own_modules import OwnModules
from maskline.console.reload.sources import Sources, read_sources, worth_a_reload
from maskline.console.reload.watcher import Watcher
from maskline.console.reload.worker_slot import WorkerSlot
from maskline.schemas.errors import ConfigError, HandlerModulesError
from maskline.worker.node import WorkerNode

SAVING_S: Final = 0.15
NAMES_SHOWN_MAX: Final = 3
MISTAKES_SHOWN_MAX: Final = 8
"""After the first. One renamed import may be a mistake in every handler."""


class Reloader:
    """Reloads handlers. Make it before anything of the user's is imported.

    `names`: the handler modules, as MASKLINE_HANDLERS has them. `write`: called with a line for each reload, and each
    that failed.
    """

    def __init__(self, names: Iterable[str], write: Callable[[str], None]) -> None:
        self._own = OwnModules(names)
        self._library_metrics = default_metrics()
        self._write = write
        self._watcher = Watcher(self._own)
        self._context = contextvars.copy_context()
        # What a module sets as it is imported is gone when it is imported anew; decimal's settings are set in place.
        self._context.run(lambda: decimal.setcontext(decimal.getcontext().copy()))
        self._sources: Sources = {}
        """As found before the last load."""
        self._failed = False
        """The last load has."""

    def load(self, make_worker: Callable[[], WorkerNode]) -> WorkerNode:
        """Make the first worker. Raises ConfigError if a module is wrong, or if none is the user's own."""
        before = read_sources(self._own.roots, {})
        with sources_compiled(self._own):
            worker = make_worker()
        self._own.find_folders()
        if not self._own.files():
            raise ConfigError(
                "dev: --reload has nothing to watch: MASKLINE_HANDLERS names no module of yours"
            )
        self._sources = read_sources(self._watcher.folders(), before) | before
        return worker

    async def run(self, slot: WorkerSlot, make_worker: Callable[[], WorkerNode]) -> None:
        """Reload until cancelled. Raises ConfigError if a new worker cannot start, and there is none any more."""
        async for touched in self._watcher.changes():
            changed = self._changed(touched)
            while changed:
                error = await self._reload(slot, make_worker, changed)
                if error is None:
                    break
                # An editor may be in the middle of writing.
                await asyncio.sleep(SAVING_S)
                changed = self._changed(set(changed))
                if not changed:
                    self._tell(error)

    def _tell(self, error: ConfigError) -> None:
        what = error.mistakes if isinstance(error, HandlerModulesError) else (error,)
        first, *others = map(str, what)
        self._write(f"not reloaded, the version before goes on: {first}")
        for other in others[:MISTAKES_SHOWN_MAX]:
            self._write(f"  {other}")
        if len(others) > MISTAKES_SHOWN_MAX:
            self._write(f"  and {len(others) - MISTAKES_SHOWN_MAX} more: `maskline check` shows them")

    def _changed(self, touched: set[Path]) -> list[Path]:
        """The files for which there is a reload now; they count as loaded from then on."""
        now = read_sources(self._watcher.folders(), self._sources, touched)
        changed = worth_a_reload(self._sources, now, self._own.files(), failed=self._failed)
        self._sources = now
        return changed

    async def _reload(
        self, slot: WorkerSlot, make_worker: Callable[[], WorkerNode], changed: Iterable[Path]
    ) -> ConfigError | None:
        """Load the modules anew, and have a worker with them take the other's place. Returns what is wrong with them;
        the worker is the old one then.
        """
        began, before = monotonic(), slot.worker.handler_names
        aside = SetAside(self._own, self._library_metrics)
        try:
            worker = await asyncio.create_task(self._open(make_worker), context=self._context.copy())
        except ConfigError as error:
            aside.put_back()
            self._failed = True
            return error
        except BaseException:  # cancelled: Ctrl-C
            aside.put_back()
            raise
        aside.drop()
        self._failed = False
        self._own.find_folders()
        # Folders that are watched from now on: what is in them now was loaded, if anything was.
        self._sources = read_sources(self._watcher.folders(), self._sources) | self._sources
        await asyncio.shield(slot.replace(worker))
        self._write(f"reloaded {_names(changed)} in {monotonic() - began:.2f} s")
        for line in _differences(before, worker.handler_names):
            self._write(line)
        return None

    async def _open(self, make_worker: Callable[[], WorkerNode]) -> WorkerNode:
        decimal.setcontext(decimal.getcontext().copy())
        try:
            with sources_compiled(self._own):
                worker = make_worker()
        except ConfigError:
            raise
        except BaseException as error:
            raise ConfigError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
        await worker.open()
        return worker


def _names(files: Iterable[Path]) -> str:
    names = [file.name for file in files]
    shown, more = ", ".join(names[:NAMES_SHOWN_MAX]), len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _differences(before: Iterable[str], now: Iterable[str]) -> list[str]:
    old, new = set(before), set(now)
    lines = [f"  new handler   {name}" for name in sorted(new - old)]
    lines += [
        f"  gone          {name}   (what waits for it goes on once a handler has this name=)"
        for name in sorted(old - new)
    ]
    return lines
