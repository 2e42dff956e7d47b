"""maskline's handler: `python -m maskline.worker` with MASKLINE_HANDLERS=bench.worker.maskline_handlers."""

from bench.worker.tally import handled, pause, pauses
from maskline import Context, on
from maskline.events import Event


@on.every(retries=0)
async def handle(event: Event, _: Context) -> None:
    if pauses and not await pause(event.session_uuid):
        return
    handled()
