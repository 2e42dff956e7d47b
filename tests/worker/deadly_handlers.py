"""The handlers of recording_handlers, some of which bring their process down.

A session's name says how its second event does so: `exit…`, `kill…`, `fault…`; `plain…` exits in the thread of a plain
handler. The others end the event loop: `interrupt…`, `stop…`, and `task…` by a task that the handler leaves behind.
With DEADLY_ONCE=<file> that happens once, and not again while the file is there.
"""

import asyncio
import ctypes
import os
import signal
from pathlib import Path

from recording_handlers import Recorder, note, recorder, write

from maskline import Context, on
from maskline.events import Event

__all__ = ["recorder"]

DEADLY_NUMBER = 2


def interrupt() -> None:
    raise KeyboardInterrupt


def leave_a_task() -> None:
    async def leave() -> None:
        raise SystemExit

    task = asyncio.ensure_future(leave())
    task.add_done_callback(lambda _: None)  # keeps it


DEATHS = {
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fault": lambda: ctypes.string_at(0),
    "plain": lambda: os._exit(0),
    "interrupt": interrupt,
    "stop": lambda: asyncio.get_running_loop().stop(),
    "task": leave_a_task,
}


def die_if_deadly(event: Event, ctx: Context, *, plain: bool) -> None:
    way = event.session_uuid.rstrip("0123456789")
    if way not in DEATHS or (way == "plain") != plain or ctx.sequence_number != DEADLY_NUMBER:
        return
    if once := os.environ.get("DEADLY_ONCE"):
        if Path(once).exists():
            return
        Path(once).touch()
    write(what="deadly", session=event.session_uuid, key=ctx.idempotency_key, parent=os.getppid())
    DEATHS[way]()


@on.every(retries=2, backoff_ms=20, on_give_up="skip", name="record")
async def record(event: Event, ctx: Context, recorder: Recorder) -> None:
    die_if_deadly(event, ctx, plain=False)
    await note(event, ctx, recorder, "record")


@on.every(name="thread", on_give_up="skip")
def thread(event: Event, ctx: Context) -> None:
    die_if_deadly(event, ctx, plain=True)
