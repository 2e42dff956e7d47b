"""`maskline trigger` at an ingest process and a worker process, which run apart, as in production."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from console_kit import command
from process_kit import fleet
from servers import free_port
from system_kit import AUTH_ID, AUTH_TOKEN, ingest

from maskline.console.trigger.callback import UNSEQUENCED, check_names, make_pairs, read_attributes
from maskline.console.trigger.facts import Facts, Queued
from maskline.console.trigger.outcome import judge
from maskline.console.trigger.report import TriggerReport
from maskline.console.trigger.snapshot import Place
from maskline.schemas.decode import event_from_pairs
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.events import EVENT_TYPES, RECORDING_ATTRIBUTES, STATUS_ATTRIBUTES, UnknownEvent
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.queue_item import QueueItem

HANDLERS = Path(__file__).with_name("trigger_handlers.py")
GAP_TIMEOUT_MS = 1_500


@pytest.fixture(scope="module")
def node(redis_server, tmp_path_factory):
    """An ingest process and a worker process; the crew, and the URL."""
    directory = tmp_path_factory.mktemp("trigger")
    with fleet(redis_server, "test-trigger", directory) as crew, ingest(crew) as url:
        crew.start(handlers=HANDLERS, gap_timeout_ms=GAP_TIMEOUT_MS, lease_ttl_ms=5_000)
        yield crew, url


@pytest.fixture
def trigger(node, monkeypatch, capsys, tmp_path):
    """Runs the command in a directory of its own; the exit code, and what it said: as JSON if that was asked for."""
    crew, url = node
    monkeypatch.chdir(tmp_path)

    def run(*argv, **environ):
        values = {
            "MASKLINE_AUTH_TOKENS": f"{AUTH_ID}:{AUTH_TOKEN}",
            "MASKLINE_PARTITIONS": str(crew.partitions),
            "MASKLINE_GAP_TIMEOUT_MS": str(GAP_TIMEOUT_MS),
            "MASKLINE_LEASE_TTL_MS": "60000",  # a worker that is slow on a loaded machine is alive
            **environ,
        }
        where = () if "--url" in argv else ("--url", url)
        code = command(monkeypatch, crew.server, crew.namespace, "trigger", *argv, *where, **values)
        captured = capsys.readouterr()
        if "--json" in argv:
            return code, msgspec.json.decode(captured.out, type=TriggerReport)
        return code, captured.out + captured.err

    return run


def by_handler(report):
    return {one.name: one.outcome for one in report.handlers}


def test_an_event_is_followed_to_the_handlers_that_take_it(trigger):
    code, said = trigger("SessionSecondPartyHangup", "Amount=0.02")
    assert code == 0
    lines = said.splitlines()
    assert re.fullmatch(r"SessionSecondPartyHangup  number 1  session [0-9a-f-]{36}", lines[0])
    assert lines[1].startswith("answered 200 in ")
    assert lines[2:] == ["in order", "  handled  fares.settle", "  handled  fares.tell"]

    code, report = trigger("--session", "last", "SessionPartiesHangup", "--json", "amount=0.03")
    assert code == 0
    assert (report.outcome, report.order, report.sequence_number) == ("handled", "in_order", "2")
    assert report.session_uuid in lines[0]
    assert [(one.name, one.outcome) for one in report.handlers] == [
        ("fares.tell", "handled"),
        ("fares.alone", "handled"),
    ]
    # A recording is numbered apart, and PINs are not numbered.
    code, report = trigger("SessionRecordingCompleted", "--session", "last", "--json")
    assert (code, report.outcome, report.sequence_number) == (1, "no_handler", "1")
    code, report = trigger("SessionPinAuthenticationStatus", "--session", report.session_uuid, "--json")
    assert (report.sequence_number, report.order) == (None, "unsequenced")
    shown = dict(report.parameters)
    assert shown["PinAuthenticationStatus"] == "success"
    assert "1415555" not in str(report)


def test_a_value_that_handlers_cannot_read_is_told(trigger):
    code, said = trigger("SessionTimeout", "Amount=2 cents", "EventTimestamp=soon", "--no-follow")
    assert code == 0
    told = [line.partition(" ")[0] for line in said.splitlines() if "event.problems" in line]
    assert sorted(told) == ["Amount", "EventTimestamp"]


def test_a_handler_that_fails_is_named_with_its_error_and_its_next_try(trigger):
    code, report = trigger("SessionSecondPartyHangup", "Amount=13", "From=+14155550123", "--json")
    assert (code, report.outcome) == (1, "failed")
    settle, tell = report.handlers
    assert (settle.outcome, tell.outcome) == ("failed", "handled")
    assert settle.attempts >= 2
    assert settle.next_try_s > 0
    assert re.fullmatch(r"ValueError: no fare for num_\w+", settle.why)

    session = report.session_uuid
    code, report = trigger("SessionSecondPartyHangup", "--session", session, "--timeout", "1", "--json")
    assert (code, report.outcome) == (1, "waiting")
    assert by_handler(report) == {"fares.settle": "waiting", "fares.tell": "handled"}


def test_a_dead_letter_is_named_and_what_is_behind_it(trigger, monkeypatch, node):
    code, report = trigger("SessionSecondPartyHangup", "Amount=14", "--json")
    assert (code, report.outcome) == (1, "dead_letter")
    (settle, _) = report.handlers
    assert "a bad amount" in settle.why
    code, said = trigger("SessionSecondPartyHangup", "--session", "last")
    assert code == 1
    assert "waiting  fares.settle\n           behind a dead letter of its session" in said
    crew, _ = node
    assert command(monkeypatch, crew.server, crew.namespace, "dead", "show", settle.dead_letter) == 0


def test_an_event_that_waits_for_a_number_says_for_which_and_is_followed_on(trigger):
    trigger("SessionPartiesHangup")
    fourth = "SessionPartiesHangup", "SequenceNumber=4", "EventTimestamp=2026-01-01", "--session", "last"
    code, report = trigger(*fourth, "--timeout", "1", "--json")
    assert (code, report.outcome, report.missing) == (1, "held", [2, 3])
    assert 0 < report.held_s <= GAP_TIMEOUT_MS / 1000
    code, said = trigger(*fourth)
    assert (code, said.splitlines()[2][:11]) == (1, "a duplicate")
    code, said = trigger("SessionPartiesHangup", "SequenceNumber=6", "--session", "last")
    assert code == 0
    assert re.search(r"^(held: waits for number 5, \d.\d s more|no worker .*) …$", said, re.MULTILINE), said
    assert re.search(r"^after a gap, number 5 missing$", said, re.MULTILINE), said
    code, report = trigger("SessionPartiesHangup", "SequenceNumber=5", "--session", "last", "--json")
    assert (code, report.outcome, report.order) == (0, "handled", "late")


def test_what_takes_long_is_under_way(trigger):
    code, report = trigger("SessionSecondPartyHangup", "Amount=15", "--timeout", "1", "--json")
    assert (code, report.outcome) == (1, "under_way")


def test_a_callback_that_is_refused_says_why(trigger):
    code, said = trigger("SessionTimeout", "--auth-token", "another")
    assert code == 1
    assert "answered 403 in " in said
    assert "signature_wrong" in said
    code, said = trigger("SessionTimeout", "--url", f"http://127.0.0.1:{free_port()}/callbacks")
    assert code == 1
    assert "nobody answered: is an ingest node listening" in said


def test_without_redis_the_answer_decides(trigger):
    nowhere = {"MASKLINE_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    with pytest.raises(RedisUnavailableError):
        trigger("SessionTimeout", **nowhere)
    code, report = trigger("SessionPartiesHangup", "--no-follow", "--json", **nowhere)
    assert (code, report.outcome, report.sequence_number) == (0, "answered", "1")
    code, report = trigger("SessionPartiesHangup", "--no-follow", "--json", "--session", "last", **nowhere)
    assert report.sequence_number == "2"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["SesionTimeout"], "no event 'SesionTimeout'; did you mean SessionTimeout"),
        (["SessionTimeout", "Amout=1"], "no attribute 'Amout'; did you mean Amount"),
        (["SessionTimeout", "RecordingURL=x"], "SessionTimeout has no attribute 'RecordingURL'"),
        (["SessionTimeout", "Amount"], "an attribute is Name=value, not 'Amount'"),
        (["SessionTimeout", "Amount=1", "amount=2"], "Amount is given twice"),
        (["SessionTimeout", "--session", "last"], "there is no last session"),
        (["SessionTimeout", "SessionUUID=a", "--session", "b"], "either --session or SessionUUID="),
        (["SessionTimeout", "--session", ""], "without a session"),
        (["SessionTimeout", "--url", "localhost"], "--url must be a URL"),
    ],
)
def test_wrong_usage_is_one_line(trigger, argv, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trigger(*argv)


def test_unknown_names_are_sent_when_that_is_asked_for(trigger):
    code, report = trigger("SessionPaused", "Reason=lunch", "--unknown", "--json")
    assert (code, report.outcome, report.order) == (1, "no_handler", "in_order")
    assert ["Reason", "lunch"] in report.parameters


# The callback


@pytest.mark.parametrize("name", [*EVENT_TYPES, "SessionPaused"])
def test_every_event_has_realistic_values_that_can_be_read(name):
    number = None if name in UNSEQUENCED else 7
    pairs = make_pairs(name, {}, "s-1", number, datetime(2026, 11, 30, tzinfo=UTC))
    event = event_from_pairs(pairs)
    assert type(event) is EVENT_TYPES.get(name, UnknownEvent)
    assert not event.problems
    assert not event.extra
    assert event.sequence_number == number
    given = {value for key, value in pairs if key in ("From", "To", "FirstParty", "SecondParty")}
    assert len(given) == 2
    assert all(re.fullmatch(r"\+141555501\d\d", value) for value in given)


def test_what_is_given_wins():
    given = read_attributes(["duration=61", "From=", "sequence_number=9"])
    check_names("SessionPartiesHangup", given)
    pairs = dict(make_pairs("SessionPartiesHangup", given, "s-1", 7, datetime.now(UTC)))
    event = event_from_pairs([*pairs.items()])
    assert (event.duration, event.billed_duration, event.sequence_number) == (61, 120, 9)
    assert event.from_number is None
    assert event.amount == Decimal("0.02200")
    assert {*STATUS_ATTRIBUTES.values(), *RECORDING_ATTRIBUTES.values(), "EventName"} >= pairs.keys()


# What became of it


def facts(**changes):
    plain = Facts(10_000, 1, ("a", "b"), True, False, {}, (), {})
    return plain._replace(**changes)


def queued(attempts=0, due_ms=12_000, parked=False):
    return Queued(QueueItem(1, "1-1", b"", "in_order", (), 0, 0, attempts, why="E: x"), due_ms, parked)


def letter(handler):
    return DeadLetter("workers", "1-1", "rejected", "why", 1, b"", handler=handler)


@pytest.mark.parametrize(
    ("changes", "place", "outcome", "final"),
    [
        ({}, Place("in_order"), "handled", True),
        ({}, Place(), "duplicate", True),
        ({"takers": ()}, Place("in_order"), "no_handler", True),
        ({"takers": None}, Place("in_order"), "handled", True),
        ({"read": False}, Place("in_order"), "under_way", False),
        ({"read": False, "workers": 0}, Place("in_order"), "no_worker", False),
        ({"pending": True}, Place("in_order"), "under_way", False),
        ({"pending": True}, Place("after_gap", (1,), 10_001), "held", False),
        ({"pending": True}, Place("after_gap", (1,), 10_000), "under_way", False),
        ({"queued": {"a": queued(2)}}, Place("in_order"), "failed", True),
        ({"queued": {"a": queued()}}, Place("in_order"), "waiting", False),
        ({"queued": {"a": queued(parked=True, due_ms=None)}}, Place("in_order"), "waiting", True),
        ({"queued": {"a": queued()}, "held": {"a": "paused"}}, Place("in_order"), "waiting", True),
        ({"letters": (("1-1-1", letter("b")),)}, Place("in_order"), "dead_letter", True),
        ({"letters": (("1-1-1", letter(None)),)}, Place("late"), "dead_letter", True),
        (
            {"letters": (("1-1-1", letter("b")),), "queued": {"a": queued(2), "b": queued(2)}},
            Place("in_order"),
            "dead_letter",
            True,
        ),
    ],
)
def test_what_redis_says_decides_what_became_of_it(changes, place, outcome, final):
    judgement = judge(facts(**changes), place)
    assert (judgement.outcome, judgement.final) == (outcome, final)
