"""`maskline session` on a real server: what it finds, beside a real worker and without one."""

import asyncio
import re
import time
from types import ModuleType

import msgspec
import pytest
from console_kit import command, put_letter, settings_for
from servers import SETTLE_S
from session_kit import ANSWERED, FIRST, event, raw

from maskline import Reject, on
from maskline.console.session.command import NoSuchSessionError
from maskline.console.session.report import SessionReport
from maskline.events import Event
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.callback import CALLBACK_FIELD, encode_callback
from maskline.schemas.emission import emitted_callback
from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import Keys, partition_of
from maskline.worker.node import WorkerNode

PARTITIONS = 4
REPORT_FIELDS = {
    "session_uuid", "partition", "group", "source", "complete", "gone", "now", "first_at", "last_at", "timed_out_at",
    "first_party_number", "second_party_number", "virtual_number", "callbacks", "doubled", "calls", "events",
    "missing", "late", "skipped", "unrecorded", "unreadable", "waits", "dead_letters",
    "dead_letters_beyond", "order_error",
}  # fmt: skip


def put(client, namespace, *parameters, ids="*", session="s1"):
    stream = Keys(namespace).callbacks(partition_of(session, PARTITIONS))
    return [
        client.xadd(stream, {CALLBACK_FIELD: encode_callback(raw(it | {"SessionUUID": session}))}, id=ids)
        for it in parameters
    ]


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys):
    def run(*argv, code=0, **environ):
        options = {"MASKLINE_PARTITIONS": str(PARTITIONS)} | environ
        capsys.readouterr()  # what a worker has logged
        assert command(monkeypatch, redis_server, namespace, "session", *argv, **options) == code
        return capsys.readouterr()

    return run


def read(run, *argv):
    return msgspec.json.decode(run(*argv, "--json").out, type=SessionReport)


def module_of(*handlers):
    it = ModuleType("handlers_of_the_test")
    for at, handler in enumerate(handlers):
        setattr(it, f"handler{at}", handler)
    return it


async def work(settings, module, until):
    """Run a worker until the condition, which is asked in a thread of its own, holds."""
    worker = WorkerNode(settings, handler_modules=[module])
    await worker.start()
    try:
        async with asyncio.timeout(SETTLE_S):
            while not await asyncio.to_thread(until):
                await asyncio.sleep(0.01)
    finally:
        await worker.stop()


def test_an_unknown_session_is_exit_1_with_one_line(run, client, namespace):
    with pytest.raises(NoSuchSessionError, match="nothing is known of a session 'nope'$"):
        run("nope")
    put(client, namespace, *ANSWERED[:1])
    client.set(Keys(namespace, "workers").session(partition_of("s1", PARTITIONS), "s1"), b"odd")
    with pytest.raises(NoSuchSessionError, match="session 'S1'; there is one 's1'"):
        run("S1")


@pytest.mark.parametrize("uuid", ["", "x" * 129, "\udcff"])
def test_what_cannot_be_a_session_is_wrong_usage(run, uuid):
    with pytest.raises(ConfigError, match="session: "):
        run(uuid)


def test_a_session_without_a_worker_is_shown_from_its_stream(run, client, namespace):
    put(client, namespace, *ANSWERED, ANSWERED[3])
    put(client, namespace, *ANSWERED, session="s2")
    text = msgspec.json.decode(run("s1", "--json").out)
    assert text.keys() == REPORT_FIELDS
    shown = read(run, "s1")
    assert (shown.callbacks, shown.doubled, len(shown.events), len(shown.calls)) == (12, 1, 11, 1)
    assert [it.kind for it in shown.waits] == ["unread"]
    assert shown.source == "callbacks"
    drawing = run("s1")
    assert "call 1 · answered" in drawing.out
    assert "\x1b" not in drawing.out
    for out in (drawing.out, drawing.err, run("s1", "--json").out):
        assert FIRST.lstrip("+") not in out


def test_what_modules_emit_for_the_session_is_no_callback_of_it(run, client, namespace):
    put(client, namespace, *ANSWERED)
    summary = CallSummary(session_uuid="s1", call=1, revision=1, ended_by="parties_hangup", complete=True)
    stream = Keys(namespace).callbacks(partition_of("s1", PARTITIONS))
    client.xadd(stream, {CALLBACK_FIELD: encode_callback(emitted_callback(summary, "workers", 1))})
    shown = read(run, "s1")
    assert (shown.callbacks, len(shown.events)) == (11, 11)


@pytest.mark.parametrize("uuid", ["ride 7/ü:{x}*", "S-1\n", "0f3c:status:\\"])
def test_names_with_odd_characters_are_sessions_like_others(run, client, namespace, uuid):
    put(client, namespace, *ANSWERED, session=uuid)
    assert read(run, uuid).session_uuid == uuid
    assert "call 1 · answered" in run(uuid).out


def test_what_waits_beside_a_worker(redis_server, run, client, namespace):
    put(client, namespace, ANSWERED[0], ANSWERED[3], ANSWERED[7])  # 1, 2, 5

    @on.every(name="fares")
    async def fares(event: Event, ctx):
        if ctx.sequence_number == 1:
            raise Reject("no such ride: +14155550123")

    settings = settings_for(redis_server, namespace, gap_timeout_ms=600_000, lease_ttl_ms=60_000)

    keys, partition = Keys(namespace, "workers"), partition_of("s1", PARTITIONS)

    def settled():
        waits = client.llen(keys.retry_queue(partition, "fares", "s1")) == 1
        return waits and client.xpending(keys.callbacks(partition), "workers")["pending"] == 1

    asyncio.run(work(settings, module_of(fares), settled))
    shown = read(run, "s1")
    (gap, parked) = shown.waits
    assert (gap.sequence_number, gap.last_sequence_number, gap.events) == (3, 4, 1)
    (letter,) = shown.dead_letters
    assert (parked.handler, parked.dead_letter, parked.sequence_number) == ("fares", letter.id, 2)
    assert parked.command == f"maskline dead replay {letter.id}"
    assert (letter.code, letter.parked, letter.sequence_number) == ("rejected", True, 1)
    assert "4155550123" not in run("s1").out


def test_what_only_a_dead_letter_or_a_queue_has_is_found(redis_server, run, client, namespace):
    (entry_id,) = put(client, namespace, ANSWERED[0])
    partition = partition_of("s1", PARTITIONS)
    put_letter(
        redis_server, namespace, partition, entry_id=entry_id.decode(), session_uuid="s1", handler="fares",
        callback=encode_callback(raw(ANSWERED[0])),
    )  # fmt: skip
    client.xtrim(Keys(namespace).callbacks(partition), maxlen=0, approximate=False)
    shown = read(run, "s1")
    assert [it.sequence_number for it in shown.events] == [1]
    assert shown.dead_letters[0].handler == "fares"


def test_memory_is_bounded_by_a_session_however_large_it_is(run, client, namespace, monkeypatch):
    monkeypatch.setattr("maskline.console.session.stream_search.CALLBACKS_MAX", 5)
    monkeypatch.setattr("maskline.console.session.stream_search.PAGE_ENTRIES_FIRST", 2)
    put(client, namespace, *(event("ParamUpdate", None, at) for at in range(12)))
    shown = read(run, "s1")
    assert (shown.callbacks, len(shown.events), shown.gone.beyond, shown.complete) == (12, 5, 7, False)
    assert "LEFT OUT: 7 more callbacks" in run("s1").out


def test_a_long_search_and_a_long_export_say_how_far_they_are(run, client, namespace, monkeypatch, tmp_path):
    monkeypatch.setattr("maskline.console.session.progress.SHOWN_AFTER_S", 0.0)
    put(client, namespace, *ANSWERED)
    assert "searching the stream: 11 of 11 callbacks" in run("s1").err
    assert "rewriting: 1 of 11 callbacks" in run("s1", "--export", str(tmp_path / "f.json")).err
    monkeypatch.undo()


def test_a_timeline_shows_what_is_no_longer_retained(redis_server, run, client, namespace, monkeypatch):
    for name, value in {
        "REDIS_URL": redis_server.url, "NAMESPACE": namespace, "PARTITIONS": str(PARTITIONS),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MASKLINE_{name}", value)
    from maskline.handlers import timeline

    now_ms = int(time.time() * 1000)
    put(client, namespace, *ANSWERED[:4], ANSWERED[5], ids=f"{now_ms - 600_000}-*")
    put(client, namespace, *ANSWERED[6:], ANSWERED[4], ids=f"{now_ms - 590_000}-*")
    keys, partition = Keys(namespace, "workers"), partition_of("s1", PARTITIONS)
    key = keys.timeline(partition, "s1")
    settings = settings_for(redis_server, namespace, lease_ttl_ms=60_000)
    asyncio.run(work(settings, timeline, lambda: client.hget(key, "count") == b"11"))
    kept = client.hgetall(key)
    stored = b"".join(kept.keys()) + b"".join(kept.values())
    for number in (b"4155550123", b"7700900456"):
        assert number not in stored
    assert 604_000 < client.ttl(key) <= 604_800

    whole = read(run, "s1")
    assert (whole.source, whole.complete, whole.callbacks) == ("timeline", True, 11)
    client.xtrim(keys.callbacks(partition), maxlen=0, approximate=False)
    shown = read(run, "s1")
    assert (shown.source, shown.complete, shown.callbacks) == ("timeline", False, 0)
    assert shown.calls == whole.calls
    assert shown.events == whole.events
    assert [it.sequence_number for it in shown.events if it.order == "late"] == [3]
    text = run("s1").out
    assert "as the timeline of group workers has it" in text
    assert "given up, and came late" in text
    assert re.search("NO LONGER RETAINED: callbacks of number 1 to 7", text)
    client.delete(keys.session(partition, "s1"))
    assert read(run, "s1").calls == whole.calls
