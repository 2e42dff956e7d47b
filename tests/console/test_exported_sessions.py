"""A session from production as a regression test: exported after a real run, it replays in the same order."""

import asyncio
import json
import re
from types import ModuleType
from urllib.parse import urlencode

import pytest
from console_kit import command, settings_for
from servers import SETTLE_S

from maskline import on
from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.events import Event
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import Keys, partition_of
from maskline.testing import Harness
from maskline.worker.node import WorkerNode

PARTITIONS = 4
START_MS = 1_767_600_000_000
NUMBERS = re.compile(rb"(?:1[2-9]\d\d55501\d\d|447700900\d{3})")


def module(calls):
    it = ModuleType("recorder")

    @on.every(name="record")
    async def record(event: Event, ctx) -> None:
        calls.setdefault(ctx.session_uuid, []).append((ctx.sequence_number, ctx.order, ctx.missing, ctx.run))

    it.record = record
    return it


def callbacks_of(index):
    """A session, some of whose callbacks are late, doubled, lost, JSON or GETs, with the time between them."""
    events = make_session(
        7, index, SessionOptions(calls_min=1, calls_max=2, restart_numbering=index % 2 == 1)
    )
    bodies = [it.parameters for it in events]
    if len(bodies) > 6:
        bodies[2], bodies[3] = bodies[3], bodies[2]
        del bodies[5]
        bodies.insert(5, bodies[1])
        bodies.append(bodies.pop(4))
    for at, parameters in enumerate(bodies):
        if at % 3 == 0:
            yield RawCallback("GET", urlencode(parameters).encode(), "", b"", START_MS, "MA" + "X" * 18)
        elif at % 3 == 1:
            body = json.dumps(parameters).encode()
            yield RawCallback("POST", b"", "application/json", body, START_MS, "MA" + "X" * 18)
        else:
            body = urlencode(parameters).encode()
            form = "application/x-www-form-urlencoded"
            yield RawCallback("POST", b"x=%2B%2B1" + b"4155550123", form, body, START_MS, "MA" + "X" * 18)


async def run_worker(settings, calls, handled):
    worker = WorkerNode(settings, handler_modules=[module(calls)])
    await worker.start()
    try:
        async with asyncio.timeout(SETTLE_S):
            while sum(map(len, calls.values())) < handled():
                await asyncio.sleep(0.01)
    finally:
        await worker.stop()


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys):
    def run(*argv, code=0, **environ):
        options = {"MASKLINE_PARTITIONS": str(PARTITIONS), "MASKLINE_GAP_TIMEOUT_MS": "2000"} | environ
        assert command(monkeypatch, redis_server, namespace, "session", *argv, **options) == code
        return capsys.readouterr()

    return run


def put(client, namespace, callbacks, *, start_ms=START_MS, step_ms=700):
    """Put the callbacks of a session into its stream, so far apart by the stream's clock; its SessionUUID."""
    for at, callback in enumerate(callbacks):
        uuid = decode_event(callback).event.session_uuid
        stream = Keys(namespace).callbacks(partition_of(uuid, PARTITIONS))
        client.xadd(stream, {CALLBACK_FIELD: encode_callback(callback)}, id=f"{start_ms + at * step_ms}-*")
    return uuid


def test_an_exported_session_replays_as_it_ran(redis_server, namespace, run, tmp_path):
    with redis_server.client() as client:
        uuids = [
            put(client, namespace, callbacks_of(index), start_ms=START_MS + index * 60_000)
            for index in range(8)
        ]
    calls, expected = {}, {}
    settings = settings_for(
        redis_server,
        namespace,
        partitions=PARTITIONS,
        gap_timeout_ms=2000,
        lease_ttl_ms=60_000,
        retention_s=86_400 * 365,
    )
    for index, uuid in enumerate(uuids):
        expected[uuid] = len({decode_event(it).fingerprint for it in callbacks_of(index)})
    asyncio.run(run_worker(settings, calls, lambda: sum(expected.values())))

    for index, uuid in enumerate(uuids):
        # Of this session: a number of another one may be the very fictional one that this file has.
        originals = {found for it in callbacks_of(index) for found in NUMBERS.findall(it.query + it.body)}
        file = tmp_path / f"{uuid}.json"
        said = run(uuid, "--export", str(file))
        assert "with fictional numbers" in said.out
        content = file.read_bytes()
        assert b"MAX" not in content
        for number in originals:
            assert number not in content
            assert number[-9:] not in content
        replayed = asyncio.run(replay(file))
        assert replayed == calls[uuid]
    assert len({order for got in calls.values() for _, order, _, _ in got}) > 2


async def replay(file):
    async with Harness(module({})) as harness:
        await harness.replay(file)
        return [(it.event.sequence_number, it.order, it.missing, it.run) for it in harness.calls]


def test_a_file_is_not_overwritten_without_force(redis_server, namespace, run, tmp_path):
    with redis_server.client() as client:
        uuid = put(client, namespace, callbacks_of(0))
    file = tmp_path / "f.json"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="f.json exists; --force overwrites it"):
        run(uuid, "--export", str(file))
    assert file.read_text() == "mine"
    run(uuid, "--export", str(file), "--force")
    assert json.loads(file.read_text())["session_uuid"] == uuid
    with pytest.raises(ConfigError, match="cannot be written"):
        run(uuid, "--export", str(tmp_path / "no" / "f.json"))


def test_what_is_not_retained_any_more_is_said(redis_server, namespace, run, tmp_path):
    with redis_server.client() as client:
        uuid = put(client, namespace, callbacks_of(0))
        stream = Keys(namespace).callbacks(partition_of(uuid, PARTITIONS))
        client.xtrim(stream, minid=f"{START_MS + 1500}-0", approximate=False)
    said = run(uuid, "--export", str(tmp_path / "f.json"))
    assert "NO LONGER RETAINED" in said.err
    assert "does not have the whole session" in said.err
    assert json.loads((tmp_path / "f.json").read_text())["complete"] is False
