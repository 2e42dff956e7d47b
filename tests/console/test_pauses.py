"""`maskline pause` and `maskline resume`, on a real server."""

import sys

import msgspec
import pytest
from console_kit import command
from pause_kit import Group

from maskline.schemas.errors import ConfigError
from maskline.schemas.handler_control import WHY_MAX_CHARS, HandlerReport, Pause
from maskline.worker.commands.retry_ops import Append

NAME = "fares.settle: all%"
"""With characters that keys and fields encode."""


@pytest.fixture
def group(redis_server, namespace):
    group = Group(redis_server, namespace)
    group.live("w1", {NAME: HandlerReport(), "mail": HandlerReport()})
    return group


@pytest.fixture
def run(redis_server, namespace, monkeypatch):
    def run(*argv: str) -> int:
        return command(monkeypatch, redis_server, namespace, *argv, MASKLINE_PARTITIONS="4")

    return run


class Terminal:
    """A terminal on stdin, and what is typed there."""

    def __init__(self, typed: str) -> None:
        self._typed = typed

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._typed


def test_pause_and_resume_change_what_workers_read(group, run, capsys) -> None:
    group.commit({0: [Append(NAME, "s1", 0, b"event"), Append(NAME, "s2", 0, b"event")]})
    before_ms = group.now_ms()
    assert run("pause", NAME, "--why", "rates are wrong") == 0
    assert f"{NAME} is paused: 1 live worker has it, and 2 events of it wait" in capsys.readouterr().out
    control = group.control()
    assert control.revision == 1
    pause = control.paused.pop(NAME)
    assert not control.paused
    assert before_ms <= pause.since_ms <= group.now_ms()
    assert pause.why == "rates are wrong"
    assert "@" in pause.by

    assert run("resume", NAME) == 0
    assert f"{NAME} is resumed: it was paused for 0 s by" in capsys.readouterr().out
    assert group.control() == (2, {})


def test_second_pause_keeps_its_beginning_and_may_change_its_reason(group, run, capsys) -> None:
    run("pause", NAME, "--why", "rates")
    first = group.control().paused[NAME]
    capsys.readouterr()
    assert run("pause", NAME) == 0
    assert "already" in capsys.readouterr().out
    assert group.control() == (1, {NAME: first})
    assert run("pause", NAME, "--why", "rates, ticket 7") == 0
    assert group.control() == (2, {NAME: Pause(first.since_ms, "rates, ticket 7", first.by)})


def test_resume_of_a_handler_that_is_not_paused_changes_nothing(group, run, capsys) -> None:
    assert run("resume", NAME) == 0
    assert f"{NAME} is not paused: up" in capsys.readouterr().out
    assert group.control() == (0, {})


@pytest.mark.parametrize("name", ["pause", "resume"])
def test_typing_error_does_not_look_like_success(group, run, name) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name}: no worker has a handler 'mial' \(did you mean mail\?\)"
    ) as no:
        run(name, "mial")
    assert NAME in str(no.value)
    assert group.control() == (0, {})


def test_handlers_of_ended_workers_and_of_queues_are_known(group, run, capsys) -> None:
    group.ended("w0", {"at night": HandlerReport()})
    group.commit({1: [Append("renamed", "s1", 0, b"event")]})
    assert run("pause", "at night") == 0
    assert "0 live workers have it" in capsys.readouterr().out
    assert run("pause", "renamed") == 0
    assert group.control().paused.keys() == {"at night", "renamed"}


def test_paused_name_that_no_worker_has_can_be_resumed(group, run) -> None:
    run("pause", NAME)
    group.client.delete(group.keys.handlers)
    assert run("resume", NAME) == 0
    assert group.control() == (2, {})


def test_name_is_believed_while_no_worker_has_ever_run(redis_server, namespace, run, capsys) -> None:
    assert run("pause", "bill") == 0
    assert "no worker has told its handlers yet" in capsys.readouterr().err
    assert Group(redis_server, namespace).control().paused.keys() == {"bill"}


@pytest.mark.parametrize("name", ["pause", "resume"])
def test_terminal_is_asked(group, run, monkeypatch, capsys, name) -> None:
    if name == "resume":
        run("pause", NAME)
    before = group.control()
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert run(name, NAME) == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert group.control() == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run(name, NAME) == 0
    question = capsys.readouterr().err
    assert "1 live worker has it, and 0 events of it wait" in question
    assert group.control().revision == before.revision + 1


def test_json_says_what_changed_and_hides_numbers(group, run, capsys) -> None:
    assert run("pause", NAME, "--yes", "--json", "--why", "ask +14155550123") == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert shown["handler"] == NAME
    assert (shown["paused"], shown["changed"], shown["waiting"], shown["workers"]) == (True, True, 0, 1)
    assert shown["paused_since"]
    assert "5550123" not in shown["paused_why"]
    run("resume", NAME, "--json")
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert (shown["paused"], shown["changed"], shown["paused_since"]) == (False, True, None)
    run("resume", NAME, "--json")
    assert not msgspec.json.decode(capsys.readouterr().out)["changed"]


def test_long_reason_is_refused(group, run) -> None:
    with pytest.raises(ConfigError, match="--why"):
        run("pause", NAME, "--why", "x" * (WHY_MAX_CHARS + 1))
    assert group.control() == (0, {})
