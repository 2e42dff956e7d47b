"""A handler module with logging of its own, in all the ways that come to mind, as it is imported and as it runs."""

import asyncio
import json
import logging
import logging.config
import os
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator
from decimal import Decimal

import structlog
from prometheus_client import Counter

from maskline import Context, on, resource
from maskline.events import Event

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=True)
        ),
        structlog.processors.JSONRenderer(default=str),
    ],
    logger_factory=structlog.PrintLoggerFactory(),
    cache_logger_on_first_use=False,
)
logging.config.dictConfig(
    {
        "version": 1,
        "formatters": {"all": {"format": "%(asctime)s %(name)s %(message)s %(args)s"}},
        "handlers": {
            "out": {"class": "logging.StreamHandler", "stream": "ext://sys.__stdout__", "formatter": "all"},
            "file": {
                "class": "logging.FileHandler",
                "filename": os.environ["CHATTY_FILE"],
                "formatter": "all",
            },
            "device": {"class": "logging.FileHandler", "filename": "/dev/stdout", "formatter": "all"},
        },
        "root": {"level": "INFO", "handlers": ["out", "file", "device"]},
    }
)
LATE_S = 0.05
CALLS = Counter("chatty_calls", "Calls of the handler.", ["to"])


@resource
async def printer() -> AsyncIterator[structlog.PrintLogger]:
    yield structlog.PrintLogger()


def spellings(number: str) -> list[object]:
    digits = number.removeprefix("+")
    grouped = "_".join(digits[at : at + 3] for at in range(0, len(digits), 3))
    # Both numbers of these tests have national parts of ten digits.
    national = f"0{digits[-10:-7]}/{digits[-7:]}"
    return [
        number,
        int(digits),
        float(digits),
        Decimal(digits),
        grouped,
        national,
        f"%2B{digits}",
        digits.encode(),
    ]


@on.every(retries=1, backoff_ms=1, on_give_up="skip")
async def chatty(event: Event, ctx: Context, printer: structlog.PrintLogger) -> None:
    CALLS.labels(event.to_number).inc()
    log = logging.getLogger("chatty")
    users = structlog.get_logger()
    for number in (event.from_number, event.to_number):
        assert number is not None
        for spelling in spellings(number):
            ctx.log.info("ours", caller=spelling)
            users.info("users", caller=spelling)
            log.info("call from %s", spelling, extra={"caller": spelling})
            printer.msg(f"printed {spelling!r}")
            print(spelling, {"to": spelling}, file=sys.stderr)  # noqa: T201
            print(json.dumps({"to": spelling}, default=str))  # noqa: T201
            sys.__stdout__.write(f"{spelling}\n")
            warnings.warn(f"call from {spelling}", UserWarning, stacklevel=1)
    threading.Thread(target=raises, args=(event.to_number,)).start()
    asyncio.get_running_loop().call_later(LATE_S, raises, event.to_number)
    try:
        raises(event.from_number)
    except ValueError:
        log.exception("failed")
        users.exception("failed")
        traceback.print_exc()
    raises(national_only(event))


def national_only(event: Event) -> object:
    assert event.to_number is not None
    return spellings(event.to_number)[5]


def raises(number: object) -> None:
    raise ValueError(f"cannot dial {number}")


@on.every
def in_a_thread(event: Event, ctx: Context) -> None:
    structlog.reset_defaults()
    structlog.get_logger().warning("by default", to=event.to_number, event_itself=event)
    logging.basicConfig(level="DEBUG", force=True)
    logging.debug("by basicConfig %s", spellings(event.to_number or ""))  # noqa: LOG015
    print("the last", ctx.sequence_number)  # noqa: T201
