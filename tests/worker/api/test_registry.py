"""What `@on` and `@resource` take, and how modules are found: whatever is wrong is said in one line, at the start."""

import functools
import math

import msgspec
import pytest
from registry_kit import handler, module, names_for, refused

from maskline import on
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.emission import OtherGroupsSummary
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import (
    EVENT_TYPES,
    Event,
    RecordingEvent,
    SessionPartiesHangup,
    SessionRecordingCompleted,
    SessionSecondPartyHangup,
    SessionTimeout,
    StatusEvent,
    UnknownEvent,
)
from maskline.worker.api.binding import bind
from maskline.worker.api.handler_options import NAME_MAX_BYTES
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.retry_schedule import RetryPolicy

# Options


def test_options_reach_the_bound_handler():
    made = handler(
        retries=3,
        give_up_after_s=60,
        backoff_ms=10,
        backoff_max_ms=99,
        timeout_ms=1_500,
        on_give_up="skip",
        concurrency=2,
        rate=0.5,
        name="settle",
    )
    (bound,) = bind(load_handlers([module(h=made)]), {})[SessionTimeout]
    assert (bound.name, bound.policy, bound.timeout_s) == ("settle", RetryPolicy(3, 10, 99, 60), 1.5)
    assert (bound.on_give_up, bound.concurrency, bound.rate) == ("skip", 2, 0.5)
    assert bound.in_thread is False


def test_options_that_are_not_given_are_the_defaults_of_the_contract():
    (bound,) = bind(load_handlers([module(h=handler())]), {})[SessionTimeout]
    assert (bound.policy, bound.timeout_s) == (RetryPolicy(None, 500, 300_000, 86_400), 30)
    assert (bound.on_give_up, bound.concurrency, bound.rate) == ("park", None, None)
    assert (bound.limited, bound.special) == (False, False)


@pytest.mark.parametrize("options", [{"concurrency": 1}, {"rate": 2}, {"concurrency": 3, "rate": 0.1}])
def test_handlers_with_bounds_of_their_own_leave_the_ordinary_path(options):
    (bound,) = bind(load_handlers([module(h=handler(**options))]), {})[SessionTimeout]
    assert (bound.limited, bound.special) == (True, True)
    copied = msgspec.structs.replace(bound, call=print)
    assert (copied.limited, copied.special) == (True, True)


def test_plain_handlers_leave_the_ordinary_path_and_are_not_limited():
    @on(SessionTimeout)
    def plain(event, ctx):
        pass

    (bound,) = bind(load_handlers([module(h=plain)]), {})[SessionTimeout]
    assert (bound.in_thread, bound.limited, bound.special) == (True, False, True)


def test_a_handler_is_called_by_its_module_and_function_unless_it_has_a_name():
    (spec,) = load_handlers([module(h=handler())]).specs
    assert spec.name == "registry_kit.handler.<locals>.handle"


def test_marking_changes_nothing_a_caller_would_see():
    async def handle(event, ctx):
        return 7

    assert on(SessionTimeout)(handle) is handle
    assert on.every(handle) is handle


@pytest.mark.parametrize("option", ["retries", "backoff_ms", "backoff_max_ms", "timeout_ms", "concurrency"])
@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_wrong_options_are_refused(option, value):
    if value is None and option in ("retries", "concurrency"):
        on(SessionTimeout, **{option: value})  # no bound
        return
    with pytest.raises(ConfigError, match=f"@on: {option} must be") as caught:
        on(SessionTimeout, **{option: value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("option", ["give_up_after_s", "rate"])
@pytest.mark.parametrize("value", [-1, -0.1, "3", True, math.inf, math.nan, [2]])
def test_wrong_numbers_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"@on: {option} must be") as caught:
        on.every(**{option: value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["PARK", "", None, True, "drop"])
def test_on_give_up_is_park_or_skip(value):
    with pytest.raises(ConfigError, match=r'on_give_up must be "park" or "skip"'):
        on(SessionTimeout, on_give_up=value)


def test_least_values_of_options_are_taken():
    on(SessionTimeout, retries=0, backoff_ms=0, backoff_max_ms=0, timeout_ms=1, give_up_after_s=0)
    on(SessionTimeout, concurrency=1, rate=0.001, give_up_after_s=0.5)
    for least in ({"timeout_ms": 0}, {"concurrency": 0}, {"rate": 0}):
        with pytest.raises(ConfigError, match=next(iter(least))):
            on(SessionTimeout, **least)


@pytest.mark.parametrize("name", ["", "  ", 7])
def test_a_name_must_be_a_text(name):
    with pytest.raises(ConfigError, match="name must be a text"):
        on(SessionTimeout, name=name)


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "\udcff", "zero\u200bwidth"])
def test_a_name_must_be_readable_in_logs_and_keys(name):
    with pytest.raises(ConfigError, match="printable") as caught:
        on(SessionTimeout, name=name)
    assert len(str(caught.value).splitlines()) == 1


def test_the_length_of_a_name_is_bounded_also_of_one_that_is_derived():
    on(SessionTimeout, name="ü" * (NAME_MAX_BYTES // 2))
    with pytest.raises(ConfigError, match="at most"):
        on(SessionTimeout, name="ü" * (NAME_MAX_BYTES // 2) + "u")

    async def handle(event, ctx):
        pass

    handle.__qualname__ = "h" * NAME_MAX_BYTES
    with pytest.raises(ConfigError, match="at most"):
        on(SessionTimeout)(handle)


@pytest.mark.parametrize("wrong", [str, "SessionTimeout", None, SessionTimeout(session_uuid="s"), object()])
def test_only_types_of_events(wrong):
    with pytest.raises(ConfigError, match="takes types of events"):
        on(SessionTimeout, wrong)


def test_on_without_types_or_brackets():
    with pytest.raises(ConfigError, match=r"use @on\.every"):
        on()
    with pytest.raises(ConfigError, match=r"stands without its events: write @on\(SessionTimeout\)"):

        @on
        async def handle(event, ctx):
            pass


# Which events


def test_one_type_several_types_and_none_else():
    one = handler(name="one")

    @on(SessionTimeout, SessionPartiesHangup, name="both")
    async def both(event, ctx):
        pass

    table = bind(load_handlers([module(one=one, both=both)]), {})
    assert [h.name for h in table[SessionTimeout]] == ["one", "both"]
    assert [h.name for h in table[SessionPartiesHangup]] == ["both"]
    assert table[SessionSecondPartyHangup] == ()
    assert set(table) == {*EVENT_TYPES.values(), UnknownEvent, CallSummary, OtherGroupsSummary}


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        (Event, {*EVENT_TYPES.values(), UnknownEvent}),
        (StatusEvent, {kind for kind in EVENT_TYPES.values() if issubclass(kind, StatusEvent)}),
        (RecordingEvent, {kind for kind in EVENT_TYPES.values() if issubclass(kind, RecordingEvent)}),
        (UnknownEvent, {UnknownEvent}),
        (CallSummary, {CallSummary}),
        (SessionRecordingCompleted, {SessionRecordingCompleted}),
    ],
)
def test_base_classes_mean_all_below_them(kind, meant):
    table = bind(load_handlers([module(h=handler(kind))]), {})
    assert {kind for kind, handlers in table.items() if handlers} == meant
    assert meant


def test_the_two_bases_part_the_documented_events():
    known = set(EVENT_TYPES.values())
    recordings = {kind for kind in known if issubclass(kind, RecordingEvent)}
    assert len(recordings) == 3
    assert {kind for kind in known if issubclass(kind, StatusEvent)} == known - recordings


def test_every_with_and_without_options():
    @on.every
    async def bare(event, ctx):
        pass

    @on.every(retries=1, name="with options")
    async def called(event, ctx):
        pass

    @on.every()
    async def empty(event, ctx):
        pass

    handlers = load_handlers([module(bare=bare, called=called, empty=empty)])
    for kind, bound in bind(handlers, {}).items():
        expected = [None, 1, None] if issubclass(kind, Event) else []
        assert [h.policy.retries for h in bound] == expected
    with pytest.raises(ConfigError, match="retries"):
        on.every(retries=-1)


def test_one_function_may_be_marked_with_options_of_its_own_for_each_event():
    @on(SessionTimeout, retries=1)
    @on(SessionPartiesHangup, retries=2)
    async def handle(event, ctx):
        pass

    table = bind(load_handlers([module(h=handle)]), {})
    assert [h.policy.retries for h in table[SessionTimeout]] == [1]
    assert [h.policy.retries for h in table[SessionPartiesHangup]] == [2]
    assert table[SessionTimeout][0].name == table[SessionPartiesHangup][0].name


@pytest.mark.parametrize("option", ["concurrency", "rate"])
def test_bounds_of_one_name_are_the_same_for_each_of_its_events(option):
    """They bound all that runs under the name."""

    def marked(first, second):
        @on(SessionTimeout, **{option: first})
        @on(SessionPartiesHangup, **{option: second})
        async def handle(event, ctx):
            pass

        return module(h=handle)

    assert f"is marked twice with another {option}=" in refused(marked(2, 3))
    assert f"is marked twice with another {option}=" in refused(marked(2, None))
    assert len(load_handlers([marked(2, 2)]).specs) == 2


def test_one_function_marked_twice_for_an_event_would_handle_it_twice():
    @on.every
    @on(SessionTimeout)
    async def handle(event, ctx):
        pass

    assert "marked twice for SessionTimeout" in refused(module(h=handle))


def test_function_marked_twice_for_an_event_handles_it_twice_under_two_names():
    @on.every(name="second")
    @on(SessionTimeout, name="first")
    async def handle(event, ctx):
        pass

    assert names_for(SessionTimeout, module(h=handle)) == ["second", "first"]


def test_two_handlers_of_one_name_are_refused():
    text = refused(module(a=handler(name="settle"), b=handler(SessionPartiesHangup, name="settle")))
    assert "two handlers are called settle" in text
    assert "name=" in text


def test_order_of_declaration_within_and_over_modules():
    first = module(z=handler(name="1"), a=handler(name="2"), m=handler(name="3"))
    second = module(b=handler(name="4"))
    assert names_for(SessionTimeout, first, second) == ["1", "2", "3", "4"]
    assert names_for(SessionTimeout, second, first) == ["4", "1", "2", "3"]


def test_a_handler_that_several_modules_import_runs_once():
    shared = handler(name="shared")
    assert names_for(SessionTimeout, module(a=shared, alias=shared), module(b=shared)) == ["shared"]


# What can be marked


async def test_plain_async_and_decorated_functions():
    seen = []

    def traced(function):
        @functools.wraps(function)
        async def wrapper(*arguments, **named):
            seen.append("traced")
            return await function(*arguments, **named)

        return wrapper

    def logged(function):
        @functools.wraps(function)
        def wrapper(*arguments, **named):
            seen.append("logged")
            return function(*arguments, **named)

        return wrapper

    @on(SessionTimeout, name="inside")
    @traced
    async def inside(event, ctx):
        seen.append("inside")

    @traced
    @on(SessionTimeout, name="outside")
    async def outside(event, ctx):
        seen.append("outside")

    @logged
    @on(SessionTimeout, name="plain wrapper")
    async def behind_plain(event, ctx):
        seen.append("behind plain")

    @on(SessionTimeout, name="plain")
    def plain(event, ctx):
        seen.append("plain")

    made = module(inside=inside, outside=outside, behind_plain=behind_plain, plain=plain)
    bound = bind(load_handlers([made]), {})[SessionTimeout]
    assert [h.in_thread for h in bound] == [False, False, False, True]
    for h in bound[:3]:
        await h.call(None, None)
    assert seen == ["traced", "inside", "traced", "outside", "logged", "behind plain"]


class Class:
    def method(self, event, ctx):
        pass

    def __call__(self, event, ctx):
        pass


@pytest.mark.parametrize(
    "thing",
    [functools.partial(print), Class().method, Class(), Class, print, SessionTimeout],
    ids=["partial", "bound method", "callable", "class", "builtin", "event type"],
)
def test_marking_anything_but_a_function_is_refused(thing):
    with pytest.raises(ConfigError, match="wrap it in a function"):
        on(SessionTimeout)(thing)
    with pytest.raises(ConfigError, match="wrap it in a function"):
        on.every(thing)


def test_method_as_handler_is_refused():
    with pytest.raises(ConfigError, match="not a method"):

        class Handlers:
            @on(SessionTimeout)
            async def handle(self, event, ctx):
                pass


def test_generator_as_handler_is_refused():
    with pytest.raises(ConfigError, match="must not yield"):

        @on(SessionTimeout)
        async def awaiting(event, ctx):
            yield

    with pytest.raises(ConfigError, match="must not yield"):

        @on(SessionTimeout)
        def plain(event, ctx):
            yield


def test_handler_with_too_few_parameters_is_refused():
    @on(SessionTimeout, name="lonely")
    async def lonely(event):
        pass

    assert "lonely must take an event and a context" in refused(module(h=lonely))
