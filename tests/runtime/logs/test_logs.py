import asyncio
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import structlog
from example_counts import examples
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from maskline.runtime.logs import configure_logging, get_logger
from maskline.runtime.logs.redaction import ITEMS_MAX, TEXT_MAX_CHARS
from maskline.schemas.privacy import number_token
from maskline.schemas.settings import Settings

NUMBER = "+14155550123"
OTHER = "+447700900123"


@contextlib.contextmanager
def configured(log_format="json", log_level="debug", stream=None):
    """Logging set up on a stream, and everything global put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, warnings.showwarning
    stream = io.StringIO() if stream is None else stream
    # basicConfig(force=True) closes what it finds: pytest's own handlers must survive.
    root.handlers[:] = []
    try:
        configure_logging(Settings(log_format=log_format, log_level=log_level), stream=stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.excepthook, threading.excepthook, warnings.showwarning = hooks
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture
def out():
    with configured() as stream:
        yield stream


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def digits(text):
    return "".join(filter(str.isdigit, text))


def test_line_has_time_level_logger_event_and_context(out):
    structlog.contextvars.bind_contextvars(session_uuid="s-1")
    get_logger("worker").bind(partition=7).warning("gap given up", missing=[3, 4], ok=None)
    (line,) = lines(out)
    time = datetime.fromisoformat(line.pop("timestamp"))
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert line == {
        "level": "warning",
        "logger": "worker",
        "event": "gap given up",
        "session_uuid": "s-1",
        "partition": 7,
        "missing": [3, 4],
        "ok": None,
    }


def test_levels():
    with configured(log_level="warning") as out:
        log = get_logger("a")
        log.info("no")
        log.error("yes")
        logging.getLogger("aiohttp").info("no")
        logging.getLogger("aiohttp").error("yes, %s", "too")
    assert [line["event"] for line in lines(out)] == ["yes", "yes, too"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_phone_number_leaves_by_any_log_call(log_format):
    class Odd:
        def __repr__(self):
            return f"<call from {NUMBER}>"

    def fail():
        raise ValueError(f"cannot dial {NUMBER}") from KeyError(OTHER)

    with configured(log_format) as out:
        log = get_logger("handlers")
        log.info(f"call from {NUMBER}")  # noqa: G004 - what users write
        log.info("a", from_number=NUMBER, To=14155550123, first_party=[OTHER], second_party="4155550123")
        log.info(
            "b", anything={"deep": [{"From": NUMBER}, (OTHER,)], NUMBER: 1}, body=f"To={NUMBER}".encode()
        )
        log.info("c", value=Odd(), error=RuntimeError(NUMBER), items={OTHER})
        log.info("d", path=Path(f"/calls/{NUMBER}"))
        structlog.contextvars.bind_contextvars(caller=NUMBER)
        logging.getLogger("aiohttp.server").error("bad request from %s", NUMBER, stack_info=True)
        try:
            fail()
        except ValueError:
            log.exception("handler failed")
            logging.getLogger("asyncio").exception("Task exception was never retrieved %s", OTHER)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)  # catch_warnings has put the plain way back
            warnings.warn(f"old way to call {NUMBER}", UserWarning, stacklevel=1)
        sys.excepthook(ValueError, ValueError(NUMBER), None)
        logging.getLogger("x").info(*["%d %d", NUMBER])  # arguments that do not fit
        text = out.getvalue()
    assert text.count("\n") >= 11
    assert "4155550123" not in digits(text)
    assert "7700900123" not in digits(text)
    assert number_token(NUMBER) in text
    assert number_token(OTHER) in text
    assert "cannot dial" in text


def test_token_stays_the_token(out):
    get_logger("a").info("x", from_number=number_token(NUMBER), to_number=None, To="")
    (line,) = lines(out)
    assert (line["from_number"], line["to_number"], line["To"]) == (number_token(NUMBER), None, "")


def test_text_without_a_number_stays_readable(out):
    get_logger("a").info(
        "x",
        entry_id="1700000000000-0",
        amount=Decimal("0.0085"),
        at=datetime(2024, 2, 1, tzinfo=UTC),
        ms=1700000000000,
    )
    (line,) = lines(out)
    assert line["entry_id"] == "1700000000000-0"
    assert line["amount"] == "0.0085"
    assert line["at"].startswith("2024-02-01")
    assert line["ms"] == 1700000000000


def test_unhandled_task_error_is_one_line(out):
    async def main():
        async def fail():
            raise ValueError(NUMBER)

        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "lost", "exception": ValueError(NUMBER)})
        assert isinstance((await asyncio.gather(fail(), return_exceptions=True))[0], ValueError)

    asyncio.run(main())
    loud = [line for line in lines(out) if line["level"] == "error"]
    assert [line["event"] for line in loud] == ["lost"]
    assert "ValueError" in loud[0]["exception"]
    assert NUMBER not in loud[0]["exception"]


def test_error_in_a_thread_is_one_line(out):
    def fail():
        raise ValueError(NUMBER)

    thread = threading.Thread(target=fail, name="settle-fare")
    thread.start()
    thread.join()
    (line,) = lines(out)
    assert (line["level"], line["thread"]) == ("critical", "settle-fare")
    assert NUMBER not in line["exception"]


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")


class HostileDict(dict):
    def items(self):
        raise RuntimeError("no")


def test_hostile_values_cost_a_line_at_most(out):
    log = get_logger("a")
    loop: list[object] = []
    loop.append(loop)
    log.info("repr", value=Hostile())
    log.info("mapping", value=HostileDict(a=1))
    log.info("self", value=loop)
    log.info("surrogate", value="\udcff", big=2**100, nan=float("nan"))
    log.info("long", value="x" * (TEXT_MAX_CHARS * 2), many=list(range(ITEMS_MAX * 2)))
    log.info("number at the cut", value="x" * (TEXT_MAX_CHARS - 6) + NUMBER)
    log.info("\n{}forged\x1b[31m\u2028")
    found = lines(out)
    assert len(found) == 7
    assert "cannot be shown" in found[0]["value"]
    assert found[1]["problem"] == "RuntimeError"
    assert found[3]["value"] == "\udcff"
    assert len(found[4]["value"]) == TEXT_MAX_CHARS + 1
    assert len(found[4]["many"]) == ITEMS_MAX
    assert "4155" not in found[5]["value"]


@given(st.text(max_size=60), st.text(max_size=60))
@hypothesis_settings(max_examples=examples(100), deadline=None)
def test_one_line_an_event_whatever_the_text(event, value):
    for log_format in ("json", "console"):
        with configured(log_format) as out:
            get_logger("a").info(event, value=value)
            logging.getLogger("b").info("%s", value)
        text = out.getvalue()
        # U+2028 and the like end a line for some viewers, but none in JSON lines.
        assert len(text.splitlines() if log_format == "console" else text.split("\n")[:-1]) == 2
        assert "\x1b" not in text


def test_console_tracebacks_keep_their_lines_and_show_no_locals():
    with configured("console") as out:
        secret = "local " + OTHER
        try:
            int("a\x1b[2Jb")
        except ValueError:
            get_logger("a").exception("failed")
        assert secret
    text = out.getvalue()
    assert "Traceback (most recent call last)" in text
    assert "test_logs.py" in text
    assert "\x1b" not in text
    assert "local +" not in text


def test_auto_is_json_in_a_pipe_and_console_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with configured("auto") as out:
        get_logger("a").info("x")
    assert out.getvalue().startswith("{")
    with configured("auto", stream=Terminal()) as out:
        get_logger("a").info("x")
    assert not out.getvalue().startswith("{")


SCRIPT = """
import sys, logging
from maskline.runtime.logs import configure_logging, get_logger
from maskline.schemas.settings import Settings
configure_logging(Settings(log_format="json"))
if "wait" in sys.argv:
    sys.stdin.read()
get_logger("a").info("x")
logging.getLogger("b").error("y")
if "raise" in sys.argv:
    raise ValueError("dial +14155550123")
"""


def start(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *argv], stdin=subprocess.PIPE, text=True, **options
    )


def test_closed_or_broken_stderr_does_no_harm():
    reader, writer = os.pipe()
    broken = start("wait", stderr=writer)
    os.close(writer)
    os.close(reader)
    broken.communicate("", timeout=60)
    assert broken.returncode == 0
    closed = start(preexec_fn=lambda: os.close(2))
    closed.communicate("", timeout=60)
    assert closed.returncode == 0


def test_crash_is_one_line_without_the_number():
    process = start("raise", stderr=subprocess.PIPE)
    text = process.communicate("", timeout=60)[1]
    assert process.returncode == 1
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in found] == ["x", "y", "uncaught exception"]
    assert "dial num_" in found[-1]["exception"]
