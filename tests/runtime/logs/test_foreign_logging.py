"""Whatever a handler module sets up to log with, the numbers of the events under way do not get out by it."""

import contextlib
import io
import json
import logging
import logging.config
import logging.handlers
import pickle
import pprint
import queue
import re
import socket
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from decimal import Decimal

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskline.runtime.logs import foreign_logging, known_numbers
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS, KnownNumbers
from maskline.runtime.logs.line_writer import LineWriter, nonblocking_text_stream
from maskline.schemas.events import SessionFirstPartyAnswer, SessionTimeout
from maskline.schemas.phone_numbers import PhoneNumbers
from maskline.schemas.privacy import number_token

FROM, TO = "+14155550123", "+447700900123"


def event(from_number=FROM, to_number=TO, **others):
    return SessionFirstPartyAnswer(session_uuid="s", from_number=from_number, to_number=to_number, **others)


def leaks(text, *numbers):
    found = "".join(
        filter(str.isdigit, re.sub(r"num_[0-9a-f]{10}", "|", re.sub(r"\x1b\[[0-9;]*m", "", text)))
    )
    return any(number[-9:] in found for number in numbers or (FROM, TO))


@dataclass
class Call:
    to: object
    """Its repr shows it."""


@contextlib.contextmanager
def held(tmp_path):
    """Streams, logging and structlog as they are in a worker; what comes out is in the list."""
    out = io.StringIO()
    KNOWN_NUMBERS._numbers = PhoneNumbers()
    KNOWN_NUMBERS._added.clear()
    KNOWN_NUMBERS._seen.clear()
    root = logging.getLogger()
    before = root.handlers[:], root.level, dict(logging.root.manager.loggerDict)
    root.handlers[:] = []
    let_go = foreign_logging.install(lambda _: False)
    stream = nonblocking_text_stream(
        LineWriter(Fileless(out), lambda _: b""), Fileless(out), KNOWN_NUMBERS.hide_bytes
    )
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = stream
    KNOWN_NUMBERS.add_event(event())
    try:
        yield out
    finally:
        stream.flush()
        sys.stdout, sys.stderr = streams
        let_go()
        for handler in root.handlers:
            handler.close()
        root.handlers[:], root.level = before[0], before[1]
        logging.root.manager.loggerDict.clear()
        logging.root.manager.loggerDict.update(before[2])
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


class Fileless(io.StringIO):
    """A stream without a descriptor."""

    encoding = "utf-8"
    errors = "strict"

    def __init__(self, out):
        super().__init__()
        self.write = out.write


class Jsonish(logging.Formatter):
    """As JSON formatters do: the record's own fields, whatever they are."""

    def format(self, record):
        fields = {name: value for name, value in vars(record).items() if name != "exc_info"}
        return json.dumps({**fields, "message": record.getMessage()}, default=str)


class Elsewhere(logging.Handler):
    """Goes its own way, without a formatter."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def emit(self, record):
        extra = getattr(record, "caller", None)
        if record.exc_info:
            extra = logging.Formatter().formatException(record.exc_info)
        self.out.write(f"{record.getMessage()} {record.args} {record.msg} {extra}\n")


def fail(value):
    raise ValueError(f"cannot dial {value}") from KeyError(value)


def by_logging(handler, value, formatter=None):
    handler.setFormatter(formatter)
    log = logging.getLogger("users")
    log.setLevel("DEBUG")
    log.addHandler(handler)
    log.info("call to %s", value)
    log.info(f"call to {value}", extra={"caller": value, "deep": {"to": [value, (value,)], str(value): 1}})  # noqa: G004
    log.info("%(to)s", {"to": value, "unused": value})
    log.info({"to": value})
    log.info("object %r", Call(value), extra={"call": Call(value)})
    try:
        fail(value)
    except ValueError:
        log.exception("failed", stack_info=True)
    handler.flush()


def to_stream(value, _path):
    by_logging(logging.StreamHandler(), value)


def to_file(value, path):
    handler = logging.FileHandler(path)
    by_logging(handler, value)
    handler.close()


def to_file_as_json(value, path):
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=10_000_000)
    by_logging(handler, value, Jsonish())
    handler.close()


def to_own_handler(value, path):
    with path.open("w") as out:
        by_logging(Elsewhere(out), value)


def to_memory(value, path):
    target = logging.FileHandler(path)
    by_logging(logging.handlers.MemoryHandler(100, target=target), value)
    target.close()


def to_queue(value, path):
    records, target = queue.Queue(), logging.FileHandler(path)
    target.setFormatter(Jsonish())
    listener = logging.handlers.QueueListener(records, target)
    listener.start()
    by_logging(logging.handlers.QueueHandler(records), value)
    listener.stop()
    target.close()


def to_syslog(value, path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        handler = logging.handlers.SysLogHandler(server.getsockname())
        by_logging(handler, value)
        handler.close()
        path.write_bytes(b"\n".join(server.recv(65_536) for _ in range(6)))


def to_socket_as_pickles(value, path):
    handler = logging.handlers.DatagramHandler("127.0.0.1", 0)
    handler.send = lambda data: path.write_text(str(pickle.loads(data[4:])))  # noqa: S301 - our own
    log = logging.getLogger("users")
    log.setLevel("INFO")
    log.addHandler(handler)
    log.info("call to %s", value, extra={"caller": value, "deep": [value]})


def by_dict_config(value, path):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "%(levelname)s %(message)s %(args)s"}},
            "handlers": {
                "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
                "file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "plain"},
            },
            "root": {"level": "DEBUG", "handlers": ["out", "file"]},
        }
    )
    logging.getLogger("anything").warning("call to %s", value)
    logging.getLogger("anything").debug("call to %s", [value])


def by_basic_config(value, path):
    logging.basicConfig(filename=path, level="DEBUG", force=True, format="%(message)s %(funcName)s")
    logging.info("call to %s", value)  # noqa: LOG015 - what users do


def without_any_handler(value, _path):
    logging.getLogger("nobodys").propagate = False
    logging.getLogger("nobodys").warning("call to %s", value)  # by logging.lastResort


def by_arguments_that_do_not_fit(value, _path):
    log = logging.getLogger("misfit")
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    log.warning(*["%d and %d", value])


def by_structlog(**options):
    def write(value, path):
        with path.open("wb") as binary, io.TextIOWrapper(binary, write_through=True) as text:
            made = {
                name: option(binary if option is structlog.BytesLoggerFactory else text)
                if name == "logger_factory" and option is not structlog.PrintLoggerFactory
                else option()
                if name == "logger_factory"
                else option
                for name, option in options.items()
            }
            structlog.configure(**made)
            structlog.contextvars.bind_contextvars(caller=value)
            log = structlog.get_logger("users").bind(bound=value)
            log.warning("call", to=value, deep={"to": [value]}, call=Call(value))
            log.warning(f"call to {value}")  # noqa: G004 - what users do
            try:
                fail(value)
            except ValueError:
                log.exception("failed")

    return write


def by_structlog_into_logging(value, path):
    formatter = structlog.stdlib.ProcessorFormatter(processor=structlog.processors.JSONRenderer(default=str))
    handler = logging.FileHandler(path)
    handler.setFormatter(formatter)
    log = logging.getLogger("bridged")
    log.addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    structlog.get_logger("bridged").warning("call", to=value, call=Call(value))
    handler.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["event"] == "call"


def by_structlog_and_keywords_of_logging(value, path):
    handler = logging.FileHandler(path)
    handler.setFormatter(Jsonish())
    logging.getLogger("kept").addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs], logger_factory=structlog.stdlib.LoggerFactory()
    )
    structlog.get_logger("kept").warning("call", to=value)
    handler.close()


def by_print(value, _path):
    print("call to", value, Call(value), repr({"to": value}))  # noqa: T201
    print("to", value, sep="\n", file=sys.stderr)  # noqa: T201


def in_pieces(value, _path):
    for sign in f"call to {value} ended":
        sys.stdout.write(sign)
        sys.stdout.flush()
    sys.stdout.buffer.write(f"x{value}\n".encode())


def in_a_long_line(value, _path):
    for length in range(8_180, 8_196):
        sys.stdout.write("x" * length + f"call {value}\n")


def by_pprint(value, _path):
    number = value if isinstance(value, (str, bytes)) else str(value)
    pprint.pprint({"call to": number, "digits": [list(number)] * 2})  # noqa: T203
    pprint.pp([f"call to {' '.join(number)} ended" if isinstance(number, str) else number], width=10)


def by_the_hook_for_exceptions(value, _path):
    sys.__excepthook__(ValueError, ValueError(f"cannot dial {value}"), None)


def by_a_thread(value, _path):
    thread = threading.Thread(target=print, args=("call to", value))
    thread.start()
    thread.join()


WAYS = {
    "StreamHandler": to_stream,
    "FileHandler": to_file,
    "JSON in a file": to_file_as_json,
    "a handler of one's own": to_own_handler,
    "MemoryHandler": to_memory,
    "QueueHandler": to_queue,
    "SysLogHandler": to_syslog,
    "pickles": to_socket_as_pickles,
    "dictConfig": by_dict_config,
    "basicConfig": by_basic_config,
    "lastResort": without_any_handler,
    "logging's own complaint": by_arguments_that_do_not_fit,
    "structlog's defaults": by_structlog(),
    "structlog, JSON": by_structlog(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer(default=str)],
        logger_factory=structlog.PrintLoggerFactory,
    ),
    "structlog, to a file": by_structlog(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.WriteLoggerFactory,
    ),
    "structlog, bytes": by_structlog(
        processors=[
            structlog.processors.dict_tracebacks,
            lambda _logger, _name, line: json.dumps(line, default=str).encode(),
        ],
        logger_factory=structlog.BytesLoggerFactory,
    ),
    "structlog, coloured, with locals": by_structlog(
        processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=True)],
        logger_factory=structlog.WriteLoggerFactory,
    ),
    "structlog by logging": by_structlog_into_logging,
    "structlog by logging's keywords": by_structlog_and_keywords_of_logging,
    "print": by_print,
    "pprint": by_pprint,
    "pieces": in_pieces,
    "a long line": in_a_long_line,
    "uncaught": by_the_hook_for_exceptions,
    "a thread": by_a_thread,
}
TYPES = {
    "text": lambda number: number,
    "int": int,
    "float": float,
    "Decimal": lambda number: Decimal(number).normalize(),
    "bytes": lambda number: number.encode(),
    "national": lambda number: f"0{number.lstrip('+')[2:5]}/{number.lstrip('+')[5:]}",
    "grouped": lambda number: "_".join(re.findall("..?", number)),
    "a dict": lambda number: {"to": int(number)},
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_known_number_is_hidden_in_all_output(way, kind, tmp_path):
    path = tmp_path / "file"
    with held(tmp_path) as out:
        WAYS[way](TYPES[kind](TO), path)
    written = out.getvalue() + (path.read_bytes().decode(errors="replace") if path.exists() else "")
    assert number_token(TO) in written
    assert not leaks(written)
    assert "call" in written or "dial" in written


@given(
    st.text("0123456789", min_size=9, max_size=14), st.sampled_from(["", "+"]), st.sampled_from(sorted(TYPES))
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_an_event_is_hidden(tmp_path, digits, plus, kind):
    number = f"{plus}3{digits}"
    with held(tmp_path) as out:
        KNOWN_NUMBERS.add_event(event(None, number))
        by_logging(logging.StreamHandler(), TYPES[kind](number))
        by_print(TYPES[kind](number), None)
    assert not leaks(out.getvalue(), number)


def test_text_without_a_known_number_is_unchanged(tmp_path):
    record = logging.makeLogRecord(
        {"msg": "%s %d", "args": ("x", 1_700_000_000), "extra": {"a": [1, 2.5, None]}}
    )
    assert foreign_logging.without_numbers(record) is record
    with held(tmp_path) as out:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log = logging.getLogger("plain")
        log.addHandler(handler)
        log.warning("%s %(x)s", "a")  # one that fails keeps logging's own way
        log.warning("2024-02-01 06:28:15 1700000000000-0 %s", "5e551011-0000-4000-8000-000000000000")
        print("12.50 EUR", 4155550, end="")  # noqa: T201
        print("!")  # noqa: T201
        print("no end of line 42", end="", flush=True)  # noqa: T201
        sys.stdout.buffer.raw._writer.finish()
    assert "2024-02-01 06:28:15 1700000000000-0 5e551011-0000-4000-8000-000000000000\n" in out.getvalue()
    assert out.getvalue().endswith("12.50 EUR 4155550!\nno end of line 42")


def test_json_with_a_number_in_it_stays_json(tmp_path):
    path = tmp_path / "file"
    with held(tmp_path):
        to_file_as_json(int(TO), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1]["caller"] == number_token(TO)
    assert lines[1]["deep"]["to"] == [number_token(TO)] * 1 + [[number_token(TO)]]


# What is known


def test_numbers_of_an_event():
    twice = SessionFirstPartyAnswer(
        session_uuid="s", first_party=FROM, extra={"To": [TO, "anonymous"], "Caller": "x"}, problems=("To",)
    )
    known = KnownNumbers()
    known.add_event(twice)
    known.add_event(SessionTimeout(session_uuid="s", second_party="+33639980123"))
    hidden = known.hide(f"{FROM} {TO} anonymous +33639980123")
    assert hidden == " ".join(
        [number_token(FROM), number_token(TO), "anonymous", number_token("33639980123")]
    )


class Attempts:
    def __init__(self, *events):
        self.events = lambda: events


def many_events(count):
    return [event(f"+1{area:03}555{last:04}", None) for area in range(200, 999) for last in range(100, 200)][
        :count
    ]


def test_numbers_of_running_events_stay_known(monkeypatch):
    known = KnownNumbers()
    under_way = Attempts(event(TO, None))
    known.watch(under_way)
    known.add_event(under_way.events()[0])
    for other in many_events(known_numbers.EVENTS_MAX + 10):
        known.add_event(other)
    assert not leaks(known.hide(TO), TO)
    for other in many_events(8_000):  # and looked at now and then
        known.add_event(other)
        if other.from_number.endswith("00"):
            known.hide("a line of some length")
    assert not leaks(known.hide(TO), TO)
    assert len(known._numbers) <= known_numbers.NUMBERS_MAX + known_numbers.NUMBERS_SPARE + 100
    del under_way
    for other in many_events(8_000):
        known.add_event(other)
        known.hide("a line of some length")
    assert known.hide(TO) == TO


def test_number_is_known_for_a_while_after_its_event():
    known = KnownNumbers()
    known.add_event(event())
    known.hide("a line of some length")
    for other in many_events(known_numbers.NUMBERS_MAX - 10):
        known.add_event(other)
    assert not leaks(known.hide(f"{FROM} {TO}"))


def test_line_that_is_too_long_is_cut_and_no_other(monkeypatch):
    monkeypatch.setattr(known_numbers, "LINE_MAX_CHARS", 100)
    known = KnownNumbers()
    known.add_event(event())
    fits, long = "x" * 88 + FROM, "x" * 95 + FROM
    hidden = known.hide_bytes(f"{fits}\n{long}\n{FROM}\n".encode()).decode()
    one = number_token(FROM)
    assert hidden == f"{'x' * 88}{one}\n{'x' * 95}+1415… (7 more characters)\n{one}\n"


def test_text_that_cannot_be_searched_is_not_written(monkeypatch):
    known = KnownNumbers()
    known.add_event(event())
    monkeypatch.setattr(PhoneNumbers, "find", lambda *_: 1 / 0)
    assert known.hide(FROM) == "(a text that could not be looked through for numbers: ZeroDivisionError)\n"


def test_value_of_any_kind_is_taken():
    known = KnownNumbers()
    known.add_event(event())
    # No parameters: pytest would have to write the first of them.
    for value in (
        10**5000,
        float("nan"),
        Decimal("NaN"),
        b"\xff",
        bytearray(b"x"),
        "\udcff",
        {1: {2: [None]}},
        Call(1),
    ):
        assert known.hide_value(value) is value


def run_alone(source: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, which must end well."""
    command = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_child_of_a_fork_hides_them_too():
    source = """
        import os, sys
        from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
        from maskline.runtime.logs import *
        from maskline.events import SessionTimeout
        from maskline.schemas.settings import Settings
        configure_logging(Settings(log_format="json"))
        unblock_standard_streams()
        KNOWN_NUMBERS.add_event(SessionTimeout(session_uuid="s", from_number="+14155550123"))
        KNOWN_NUMBERS._lock.acquire()  # as another thread may have done
        if os.fork() == 0:
            print(14155550123, file=sys.__stdout__, flush=True)  # noqa: T201
            os._exit(0)
        os.wait()
        get_logger("a").info("call", to=14155550123, deep=[14155550123.0], text="415_555_0123")
        write_to_stderr("415/555/0123")
        """
    done = run_alone(source)
    token = re.fullmatch(r"(num_[0-9a-f]{10})\n", done.stdout)[1]
    line, said = done.stderr.splitlines()
    assert json.loads(line)["to"] == json.loads(line)["deep"][0] == json.loads(line)["text"] == token
    assert said == token


def test_patches_are_installed_once_and_undone():
    places = lambda: (  # noqa: E731 - as they are now
        logging.Logger.callHandlers, logging.Handler.format, logging.Formatter.formatException,
        structlog.BoundLoggerBase._process_event, pprint.PrettyPrinter.pprint,
    )  # fmt: skip
    foreign_logging.install(lambda _: True)  # a test before this one may have
    held = places()
    foreign_logging.install(lambda _: True)()
    assert places() == held
    assert all("hidden" in place.__name__ or "whole" in place.__name__ for place in held)


def test_logging_configured_over_ours_hides_numbers_too():
    """As a test of a user's sees it: no process of a worker's around it."""
    source = """
        import structlog
        from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
        from maskline.runtime.logs import *
        from maskline.events import SessionTimeout
        from maskline.schemas.settings import Settings
        configure_logging(Settings(log_format="json"))
        KNOWN_NUMBERS.add_event(SessionTimeout(session_uuid="s", from_number="+14155550123"))
        as_json = [structlog.processors.JSONRenderer()]
        structlog.configure(processors=as_json, logger_factory=structlog.PrintLoggerFactory())
        get_logger("a").info("call", From="+14155550123", to=14155550123.0)
        """
    done = run_alone(source)
    line = json.loads(done.stdout)
    assert line["From"] == line["to"]
    assert line["From"].startswith("num_")
