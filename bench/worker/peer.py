"""The backlog of the task queues: each event as a dict of parameters, already parsed, which is to their advantage."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")
BATCH = 50
"""Added at a time: redis-py's pools have no more than 100 connections."""


def batches() -> Iterator[list[dict[str, str]]]:
    """The backlog, BENCH_EVENTS lines of the file BENCH_EVENTS_FILE, in batches."""
    with Path(os.environ["BENCH_EVENTS_FILE"]).open() as file:
        lines = islice(file, int(os.environ["BENCH_EVENTS"]))
        while batch := [json.loads(line) for line in islice(lines, BATCH)]:
            yield batch
