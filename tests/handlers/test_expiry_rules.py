import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskline.events import Event, SessionPartiesHangup, SessionPinAuthenticationStatus, SessionTimeout
from maskline.handlers.plivo_api.expiry_rules import ExpiryRules, expiry_rules
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import load_settings
from maskline.worker.api.loading import survey

CTX: Any = SimpleNamespace()


def hangup(**attributes: Any) -> SessionPartiesHangup:
    return SessionPartiesHangup(session_uuid="s", **attributes)


def pin(status: str | None, wrong: int | None) -> SessionPinAuthenticationStatus:
    return SessionPinAuthenticationStatus(
        session_uuid="s", pin_authentication_status=status, pin_retry_counter=wrong
    )


@pytest.mark.parametrize(
    ("after_call", "event", "ends"),
    [
        ("any", hangup(), True),
        ("any", hangup(duration=0), True),
        ("any", SessionTimeout(session_uuid="s"), False),
        ("answered", hangup(), False),
        ("answered", hangup(duration=0, billed_duration=0), False),
        ("answered", hangup(duration=12), True),
        ("answered", hangup(billed_duration=60), True),
        ("off", hangup(duration=12), False),
    ],
)
async def test_a_call_ends_the_session_if_that_is_asked_for(
    after_call: Any, event: Event, ends: bool
) -> None:
    assert await ExpiryRules(after_call=after_call).ends_session(event, CTX) is ends


@pytest.mark.parametrize(
    ("status", "wrong", "ends"),
    [
        ("failed", 2, False),
        ("failed", 3, True),
        ("FAILED", 7, True),
        ("failed", None, False),
        ("success", 3, False),
        ("AuthorizedCaller", 3, False),
        (None, 3, False),
    ],
)
async def test_three_wrong_pins_end_the_session(status: str | None, wrong: int | None, ends: bool) -> None:
    assert await ExpiryRules(pin_failures=3).ends_session(pin(status, wrong), CTX) is ends


async def test_one_wrong_pin_without_its_counter_is_one() -> None:
    assert await ExpiryRules(pin_failures=1).ends_session(pin("failed", None), CTX)


async def test_a_function_decides_plain_or_async() -> None:
    async def later(event: Event, ctx: Any) -> bool:
        return event.duration == 5

    assert await ExpiryRules(decider=lambda event, ctx: event.duration == 5).ends_session(
        hangup(duration=5), CTX
    )
    assert await ExpiryRules(decider=later).ends_session(hangup(duration=5), CTX)
    assert not await ExpiryRules(decider=later).ends_session(hangup(duration=6), CTX)


@pytest.mark.parametrize("returned", [None, 0, "", False])
async def test_what_is_false_to_python_ends_nothing(returned: Any) -> None:
    assert not await ExpiryRules(decider=lambda event, ctx: returned).ends_session(hangup(), CTX)


@pytest.mark.parametrize("returned", [("no", "too short"), "no", 1, {"ends": False}])
async def test_what_is_true_to_python_but_not_true_ends_nothing_either(returned: Any) -> None:
    with pytest.raises(TypeError, match="must return True or False, not "):
        await ExpiryRules(decider=lambda event, ctx: returned).ends_session(hangup(), CTX)


def test_only_the_events_that_can_matter_are_asked_for() -> None:
    assert ExpiryRules(after_call="any").types == (SessionPartiesHangup,)
    assert ExpiryRules(pin_failures=1).types == (SessionPinAuthenticationStatus,)
    assert ExpiryRules(pin_failures=1, decider=lambda event, ctx: True).types == (Event,)


def rules_of(**environ: str) -> ExpiryRules:
    return expiry_rules(load_settings({f"MASKLINE_EXPIRE_{name}": value for name, value in environ.items()}))


def test_settings_make_the_rules() -> None:
    assert rules_of(AFTER_CALL="answered", PIN_FAILURES="3") == ExpiryRules(
        after_call="answered", pin_failures=3
    )
    assert rules_of(FUNCTION="operator:eq").decider is not None


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({}, "nothing says when sessions end"),
        ({"FUNCTION": "math:nothing"}, "math:nothing: the module has no nothing"),
        ({"FUNCTION": "no_such_module_at_all:ends"}, "there is no module no_such_module_at_all"),
        ({"FUNCTION": "json.no_such:ends"}, "there is no module json.no_such"),
        ({"FUNCTION": "math:isnan"}, r"must be as in: def isnan\(event, ctx\)"),
        ({"FUNCTION": "decimal:Decimal"}, "is no function"),
        ({"FUNCTION": "my_deciders:yields"}, "must be as in"),
        ({"FUNCTION": "my_deciders:takes_one"}, "must be as in"),
        ({"FUNCTION": "math:pi"}, "is no function"),
        ({"FUNCTION": "math.isnan"}, "MASKLINE_EXPIRE_FUNCTION must be"),
        ({"AFTER_CALL": "sometimes"}, "MASKLINE_EXPIRE_AFTER_CALL must be"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(
    environ: dict[str, str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_deciders.py").write_text(
        "async def yields(event, ctx):\n    yield True\n\ndef takes_one(event):\n    return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=line) as raised:
        rules_of(**environ)
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_at_its_import_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_failing_deciders.py").write_text("# the first line\nimport no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MASKLINE_EXPIRE_FUNCTION", "my_failing_deciders:ends")
    monkeypatch.delitem(sys.modules, "maskline.handlers.expire", raising=False)
    (mistake,) = survey(["maskline.handlers.expire"]).mistakes
    assert "there is no module no_such_module_at_all" in mistake.text
    assert mistake.file.endswith("my_failing_deciders.py")
    assert mistake.line == 2
