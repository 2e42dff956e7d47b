"""Handlers for worker processes under test: they write down each summary that they get, in RECORD_FILE."""

import json
import os

from maskline import Context, on
from maskline.events import CallSummary


@on(CallSummary)
async def collect(summary: CallSummary, ctx: Context) -> None:
    line = json.dumps(
        {"call_key": summary.call_key, "revision": summary.revision, "key": ctx.idempotency_key}
    )
    descriptor = os.open(os.environ["RECORD_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
