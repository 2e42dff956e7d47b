"""maskline's spool, as an ingest node has it, in the process of its clients."""

from pathlib import Path

from bench.ingest.plain import run
from bench.spool.clients import DIRECTORY, drive
from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import AWAY, InFlight
from maskline.ingest.spool.spool import Spool
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings


async def main() -> None:
    spool = Spool(Settings(spool_dir=Path(DIRECTORY)), Metrics(), InFlight(), BackgroundTasks())
    await spool.start()

    async def store(partition_hash: int, value: bytes) -> None:
        await spool.write(AWAY, partition_hash, value)

    await drive(store)
    await spool.stop()


if __name__ == "__main__":
    run(main())
