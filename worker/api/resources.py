"""Opens the resources that handlers share when a worker starts, and closes them when it stops.

Each resource is opened and closed in a task of its own: if its closing raises or hangs, the others are closed all the
same, and the process ends. All of them see one context; attempts begin with copies of it.
"""

import asyncio
import contextvars
import decimal
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

from maskline.runtime.logs import get_logger
from maskline.schemas.errors import ConfigError
from maskline.worker.api.registry import ResourceSpec

CLOSE_MIN_S: Final = 1.5
"""The least time for closing all of them, if handlers have used up the stop timeout."""

CANCEL_GRACE_S: Final = 0.25
"""How long a cancelled task may take to end; after that it ends with the process."""

_log = get_logger("maskline.worker")


class _OpenResource:
    """One resource: a task that opens it, waits, and closes it."""

    def __init__(self, spec: ResourceSpec, context: contextvars.Context) -> None:
        loop = asyncio.get_running_loop()
        self.name = spec.name
        self.opened: asyncio.Future[Any] = loop.create_future()
        self._closing = asyncio.Event()
        self._task = loop.create_task(self._live(spec), name=f"resource {spec.name}", context=context)

    async def _live(self, spec: ResourceSpec) -> BaseException | None:
        try:
            async with spec.open() as value:
                self.opened.set_result(value)
                await self._closing.wait()
        except BaseException as error:  # noqa: BLE001  anything that a user's resource raises, even SystemExit
            if not self.opened.done():
                self.opened.set_exception(_as_exception(error))
            return error
        return None

    async def close(self, within_s: float) -> BaseException | None:
        """Close it within `within_s` seconds. Returns the error, None if there was none."""
        self._closing.set()
        await asyncio.wait({self._task}, timeout=within_s)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CANCEL_GRACE_S)
            return TimeoutError(f"no end after {within_s:.1f} s")
        if self.opened.exception() is not None:
            return None  # it was never open, and `open` has reported that
        return None if self._task.cancelled() else self._task.result()


class Resources:
    """The resources of a worker."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        """The context that the resources were opened in, with the variables that they have set."""
        # Resources change settings in place: their own copy, not that of the code that opens them.
        self.context.run(lambda: decimal.setcontext(decimal.getcontext().copy()))
        self._open: list[_OpenResource] = []

    async def open(self, specs: Iterable[ResourceSpec]) -> dict[str, Any]:
        """Open them one after the other; return what they yield, by their names.

        Raises ConfigError if one cannot be opened; `close` then closes the others.
        """
        opened: dict[str, Any] = {}
        for spec in specs:
            one = _OpenResource(spec, self.context)
            self._open.append(one)
            try:
                opened[spec.name] = await one.opened
            except Exception as error:
                # A ConfigError is written for the operator; of any other, the type says the most.
                kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
                described = f"{kind}{error}".removesuffix(": ")
                raise ConfigError(f"the resource {spec.name} could not be opened: {described}") from error
        return opened

    async def close(self, within_s: float = 0.0) -> list[BaseException]:
        """Close all, the last opened first, within `within_s` seconds, or CLOSE_MIN_S if that is more.

        Logs and returns the errors.
        """
        deadline = monotonic() + max(within_s, CLOSE_MIN_S)
        errors: list[BaseException] = []
        while self._open:
            one = self._open.pop()
            share_s = max(deadline - monotonic(), 0.0) / (len(self._open) + 1)
            if (error := await one.close(share_s)) is not None:
                _log.error(
                    "resource not closed", resource=one.name, reason=f"{type(error).__name__}: {error}"
                )
                errors.append(error)
        return errors


def _as_exception(error: BaseException) -> Exception:
    """The exception, or one that a future may carry in its place."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"it raised {type(error).__name__}")
