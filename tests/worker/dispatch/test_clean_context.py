"""Every attempt begins with a clean context, whatever another one has done to its own: in every kind of handler."""

import asyncio
import contextvars
import decimal
import socket
import sys
import textwrap
from types import ModuleType

import pytest
import structlog
from dispatch_kit import AT_ONCE, PATIENCE_S, RECEIVED_MS, dispatching, every, module_of, until
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline import Reject, Retry, on, resource
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import FORM_TYPE
from maskline.schemas.settings import Settings
from maskline.testing import Harness, callback
from maskline.worker.dispatch.clean_context import CleanContext
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.node import WorkerNode
from maskline.worker.partitions.committer import Committer
from maskline.worker.poison import sandbox_main
from maskline.worker.poison.sandbox_protocol import SandboxRequest

tenant = contextvars.ContextVar("tenant", default="nobody")
basket = contextvars.ContextVar("basket", default=())

CLEAN = ("nobody", {}, 28, [])


@pytest.fixture(autouse=True)
def without_the_flags_of_other_tests():
    decimal.getcontext().clear_flags()


def found():
    """What of the context an attempt can see."""
    now = decimal.getcontext()
    flags = [signal.__name__ for signal, is_set in now.flags.items() if is_set]
    return tenant.get(), structlog.contextvars.get_contextvars(), now.prec, flags


def soil(what):
    if what == "variable":
        tenant.set("somebody")
    elif what == "bindings":
        structlog.contextvars.bind_contextvars(caller="somebody")
    elif what == "precision":
        decimal.getcontext().prec = 5
    elif what == "flags":
        decimal.Decimal(1) / decimal.Decimal(3)
    elif what == "another":
        decimal.setcontext(decimal.Context(prec=3))
    elif what == "token":
        tenant.reset(tenant.set("for a while"))


DIRT = ["variable", "bindings", "precision", "flags", "another", "token"]


def handlers_that(seen, what):
    @every(name="at once")
    async def at_once(event, ctx):
        seen.append(found())
        soil(what)

    @every(name="waiting")
    async def waiting(event, ctx):
        seen.append(found())
        soil(what)
        await asyncio.sleep(0)
        soil(what)

    @every(name="plain")
    def plain(event, ctx):
        seen.append(found())
        soil(what)

    @every(name="around")
    def around(event, ctx):
        soil(what)
        return waiting(event, ctx)

    @every(name="failing", retries=2, on_give_up="skip", **AT_ONCE)
    async def failing(event, ctx):
        seen.append(found())
        soil(what)
        if ctx.attempt == 1:
            raise Retry(after_ms=0)
        if ctx.attempt == 2:
            await asyncio.sleep(0)
            raise ValueError
        if event.session_uuid == "s3":
            raise Reject("no")

    @every(name="overtime", retries=0, on_give_up="skip", timeout_ms=20)
    async def overtime(event, ctx):
        seen.append(found())
        soil(what)
        if event.session_uuid == "s1" and event.sequence_number == 1:
            await asyncio.sleep(60)

    return at_once, waiting, plain, around, failing, overtime


@pytest.mark.parametrize("what", DIRT)
async def test_no_attempt_sees_what_another_has_done(what):
    seen = []
    async with dispatching(*handlers_that(seen, what), concurrency=3) as d:
        d.feed(*((f"s{session}", number) for number in (1, 2) for session in range(10)))
        await d.until_handled()
        assert {letter.code for letter in d.letters()} == {"rejected", "timed_out"}
    assert len(seen) == 20 * (4 + 3 + 1)
    assert [one for one in seen if one != CLEAN] == []


@pytest.mark.parametrize("what", DIRT)
async def test_no_attempt_in_the_harness_sees_another_and_nothing_leaks_out(what):
    seen = []
    module = ModuleType("under_test")
    vars(module).update({function.__name__: function for function in handlers_that(seen, what)})
    async with Harness(module) as harness:
        await harness.feed(
            *(
                callback("SessionFirstPartyRinging", session_uuid=f"s{session}", sequence_number=number)
                for number in (1, 2)
                for session in range(10)
            )
        )
    assert len(seen) == 20 * (4 + 3 + 1)
    assert [one for one in seen if one != CLEAN] == []
    assert found() == CLEAN


async def test_every_attempt_begins_with_the_context_of_the_resources_unchanged():
    seen, closed = [], []

    @resource
    async def till():
        tenant.set("all")
        basket.set(["their own"])
        structlog.contextvars.bind_contextvars(node="one")
        decimal.getcontext().prec = 50
        yield
        closed.append(found())

    def spoil():
        seen.append((*found(), list(basket.get())))
        decimal.getcontext().prec = 7
        tenant.set("one")
        basket.set(["their own"])  # equal, and yet another
        basket.get().append("mine")
        structlog.contextvars.bind_contextvars(node="another")

    @on.every
    async def settle(event, ctx):
        spoil()

    @on.every
    def settle_plainly(event, ctx):
        spoil()

    module = ModuleType("under_test")
    vars(module).update(till=till, settle=settle, settle_plainly=settle_plainly)
    async with Harness(module) as harness:
        await harness.feed(
            *(callback("SessionTimeout", session_uuid=f"s{session}") for session in range(5)),
        )
    theirs = ("all", {"node": "one"}, 50, [])
    assert seen == [(*theirs, ["their own"])] * 10
    assert closed == [theirs]
    assert found() == CLEAN


async def test_another_object_of_equal_value_taints_the_context():
    seen, mine = [], []
    context = contextvars.copy_context()
    context.run(basket.set, mine)

    @every()
    async def handle(event, ctx):
        seen.append(basket.get())
        basket.set([])
        await asyncio.sleep(0)

    async with dispatching(handle, context=context) as d:
        d.feed(*((f"s{session}", number) for number in (1, 2) for session in range(5)))
        await d.until_handled()
    assert all(one is mine for one in seen)
    assert len(seen) == 10


async def test_value_that_cannot_be_compared_taints_the_context():
    class Sore:
        def __eq__(self, other):
            raise ArithmeticError

        __hash__ = None

    seen, theirs = [], Sore()
    context = contextvars.copy_context()
    context.run(basket.set, theirs)

    @every()
    async def handle(event, ctx):
        seen.append(basket.get())
        basket.set(Sore())

    async with dispatching(handle, context=context) as d:
        d.feed(*((f"s{session}", number) for number in (1, 2) for session in range(5)))
        await d.until_handled()
        assert d.letters() == []
    assert len(seen) == 10
    assert all(one is theirs for one in seen)


async def test_a_task_that_a_handler_leaves_behind_keeps_the_context_of_its_attempt():
    gate, left, seen = asyncio.Event(), [], []

    async def later(session):
        await gate.wait()
        seen.append((session, tenant.get(), decimal.getcontext().prec))

    @every()
    async def handle(event, ctx):
        session = event.session_uuid
        if session == "first":
            decimal.getcontext()  # a look is no change
        else:
            tenant.set(session)
            decimal.getcontext().prec = 3 + len(session)
        left.append(asyncio.create_task(later(session)))

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("first", 1), ("second", 1), ("third.", 1), ("fourth..", 1))
        await d.until_handled()
        gate.set()
        await asyncio.gather(*left)
    assert sorted(seen) == [
        ("first", "nobody", 28), ("fourth..", "fourth..", 11), ("second", "second", 9), ("third.", "third.", 9),
    ]  # fmt: skip


async def test_a_task_is_used_again_as_long_as_its_context_is_clean():
    tasks = set()

    @every()
    async def handle(event, ctx):
        tasks.add(asyncio.current_task())
        soil("token")

    async with dispatching(handle) as d:
        for number in range(1, 20):
            d.feed(("s", number))
            await d.until_handled()
    assert len(tasks) == 1


STEPS = st.sampled_from([*DIRT, "wait", "nothing"])


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(STEPS, st.booleans()), max_size=4), min_size=1, max_size=12),
    st.integers(1, 3),
    st.sampled_from([28, 40]),
)
def test_contexts_stay_apart_after_any_steps_of_any_handlers(scripts, concurrency, precision):
    """Attempts that do anything to their context, wait, and fail, on few runners."""
    seen = []

    async def follow(event, ctx):
        seen.append(found())
        for step, fails in scripts[int(event.session_uuid)]:
            if step == "wait":
                await asyncio.sleep(0)
            soil(step)
            if fails and ctx.attempt == 1:
                raise ValueError

    @every(name="first", retries=1, **AT_ONCE)
    async def first(event, ctx):
        await follow(event, ctx)

    @every(name="second", retries=1, **AT_ONCE)
    async def second(event, ctx):
        await follow(event, ctx)

    async def main():
        context = contextvars.Context()
        context.run(setattr, context.run(decimal.getcontext), "prec", precision)
        async with dispatching(first, second, concurrency=concurrency, context=context) as d:
            d.feed(*((str(index), number) for index in range(len(scripts)) for number in (1, 2)))
            await d.until_handled()
            assert d.letters() == []

    asyncio.run(main())
    assert len(seen) >= 4 * len(scripts)
    assert {str(one) for one in seen} == {str(("nobody", {}, precision, []))}


async def test_commits_and_their_logs_do_not_run_in_the_context_of_an_attempt(
    redis_server, namespace, monkeypatch
):
    """Commits, and what is logged of them, are of many sessions."""
    bound, seen = [], {}

    @every(name="async")
    async def handle(event, ctx):
        structlog.contextvars.bind_contextvars(caller=event.session_uuid)
        bound.append(event.session_uuid)

    def watch(kind, name):
        real = getattr(kind, name)

        def watched(self):
            seen.setdefault(f"{kind.__name__}.{name}", []).append(structlog.contextvars.get_contextvars())
            return real(self)

        monkeypatch.setattr(kind, name, watched)

    watch(Committer, "_flush")
    watch(Dispatcher, "_wake_runners")
    watch(PipelinedConnection, "_flush")
    node = WorkerNode(
        Settings(redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0, handlers=()),
        handler_modules=[module_of(handle)],
    )
    await node.start()
    try:
        await until(lambda: len(node.partitions) == 2)
        keys = Keys(namespace, "workers")
        with redis_server.client() as client:
            for number in range(20):
                body = f"EventName=SessionFirstPartyRinging&SessionUUID=s{number}&SequenceNumber=1".encode()
                encoded = encode_callback(RawCallback("POST", b"", FORM_TYPE, body, RECEIVED_MS, "MA1"))
                client.xadd(keys.callbacks(number % 2), {CALLBACK_FIELD: encoded})
        await until(lambda: len(bound) == 20 and not any(one.uncommitted for one in node.partitions))
    finally:
        await node.stop()
    assert seen.keys() >= {"Committer._flush", "Dispatcher._wake_runners"}
    assert {name: [one for one in found if one] for name, found in seen.items()} == {
        name: [] for name in seen
    }


def test_settings_of_decimal_that_are_python_s_own_need_no_copy():
    source = contextvars.Context()
    assert CleanContext(source).reusable
    source.run(decimal.getcontext)
    source.run(soil, "flags")
    assert CleanContext(source).reusable
    assert len(CleanContext(source).copy()) == 0
    source.run(soil, "precision")
    clean = CleanContext(source)
    assert not clean.reusable
    one, other = (clean.copy().run(decimal.getcontext) for _ in range(2))
    assert one is not other is not source.run(decimal.getcontext)
    assert (one.prec, other.prec) == (5, 5)


async def test_sandbox_attempt_has_a_context_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "tried_handlers.py"
    path.write_text(
        textwrap.dedent("""
            import contextvars, decimal
            from maskline import on, resource

            tenant = contextvars.ContextVar("tenant", default="nobody")
            seen = []

            def found():
                seen.append((tenant.get(), decimal.getcontext().prec))

            @resource
            async def till():
                tenant.set("all")
                decimal.getcontext().prec = 50
                yield
                found()

            @on.every(name="async")
            async def settle(event, ctx, till):
                spoil()

            @on.every(name="plain")
            def settle_plainly(event, ctx, till):
                spoil()

            def spoil():
                found()
                tenant.set("one")
                decimal.getcontext().prec = 7
        """)
    )
    body = b"EventName=SessionTimeout&SessionUUID=s"
    encoded = encode_callback(RawCallback("POST", b"", FORM_TYPE, body, RECEIVED_MS, "MA1"))
    try:
        for handler in ("async", "plain"):
            request = SandboxRequest(
                modules=(str(path),),
                path=[],
                log_format="json",
                log_level="info",
                token_key=b"k",
                handler=handler,
                entry_id="1-1",
                callback=encoded,
                ignored_parameters=frozenset(),
                order="in_order",
                missing=(),
                run=0,
                attempt=1,
                fencing_token=1,
            )
            ours, theirs = socket.socketpair()
            with ours, theirs:
                async with asyncio.timeout(PATIENCE_S):
                    await sandbox_main.run_request(request, theirs)
                assert b"HandlerDone" in ours.recv(1_000)
        module = sys.modules["tried_handlers"]
        assert module.seen == [("all", 50)] * 4
    finally:
        sys.modules.pop("tried_handlers", None)
