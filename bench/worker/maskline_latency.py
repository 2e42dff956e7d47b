"""maskline's handler for latencies: notes when each event was received, and how long it took to get here.

It is named by its path, and `latency_notes.py` beside it is loaded by its own, so that they serve the maskline of
another checkout as well.
"""

import importlib.util
from pathlib import Path

from maskline import Context, on
from maskline.events import Event

_spec = importlib.util.spec_from_file_location("latency_notes", Path(__file__).with_name("latency_notes.py"))
if _spec is None or _spec.loader is None:
    raise ImportError("latency_notes.py is missing")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
note = _module.open_notes()


@on.every(retries=0)
async def record(_: Event, ctx: Context) -> None:
    note(ctx.received_at.timestamp() * 1000)
