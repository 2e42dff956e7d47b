"""The pipelined connection, on a real server, and on one that misbehaves."""

import asyncio
import gc
import socket
import time
import tracemalloc
from types import SimpleNamespace

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import wait_until

from maskline.runtime.redis import pipeline
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.settings import Settings

PATIENCE_S = 60.0


async def connect(server, on_lost=None):
    return await RedisEndpoint(Settings(redis_url=server.url)).connect("test-link", on_lost)


@pytest.fixture
async def connection(redis_server):
    connection = await connect(redis_server)
    yield connection
    connection.close()


@pytest.fixture
async def own_link(own_redis):
    connection = await connect(own_redis)
    yield connection
    connection.close()


class Peer(asyncio.Protocol):
    """A server that says what the test has it say."""

    def __init__(self):
        self.connected = asyncio.Event()
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport
        self.connected.set()

    def data_received(self, data):
        self.received += data


@pytest.fixture
async def peer():
    """(a link to the peer, the peer)"""
    loop, peer = asyncio.get_running_loop(), Peer()
    server = await loop.create_server(lambda: peer, "127.0.0.1", 0)
    _, connection = await loop.create_connection(
        PipelinedConnection, "127.0.0.1", server.sockets[0].getsockname()[1]
    )
    await peer.connected.wait()
    yield connection, peer
    connection.close()
    peer.transport.abort()
    server.close()
    await server.wait_closed()


async def lost(future):
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(RedisUnavailableError) as caught:
            await future
    return str(caught.value)


# Packing


def test_packing():
    assert pack("SET", b"k\x00", 12) == b"*3\r\n$3\r\nSET\r\n$2\r\nk\x00\r\n$2\r\n12\r\n"
    assert pack("ü", "") == b"*2\r\n$2\r\n\xc3\xbc\r\n$0\r\n\r\n"
    assert pack(-1) == b"*1\r\n$2\r\n-1\r\n"


@given(st.lists(st.binary() | st.text() | st.integers(), min_size=1))
def test_packed_command_is_read_by_redis_as_its_arguments(arguments):
    reader = hiredis.Reader()
    reader.feed(pack(*arguments))
    expected = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
    assert reader.gets() == expected


# Replies


async def test_each_batch_gets_its_own_replies(connection):
    batches = [
        connection.send(b"".join(pack("ECHO", f"{n}.{i}") for i in range(n % 4 + 1)), n % 4 + 1)
        for n in range(500)
    ]
    async with asyncio.timeout(PATIENCE_S):
        replies = await asyncio.gather(*batches)
    assert replies == [[f"{n}.{i}".encode() for i in range(n % 4 + 1)] for n in range(500)]


async def test_batches_are_answered_in_the_order_they_were_sent(connection):
    order = []
    futures = [connection.send(pack("PING"), 1) for _ in range(50)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))
    await futures[-1]
    assert order == list(range(50))


async def test_batch_sent_at_once_keeps_its_order(connection, namespace):
    """Before what is sent later, behind what gathers already."""
    kinds = [True, False, True, False, True]
    sent = [
        connection.send(pack("GETSET", namespace, number), 1, at_once=kind)
        for number, kind in enumerate(kinds, 1)
    ]
    assert [reply for future in sent for reply in await future] == [None, b"1", b"2", b"3", b"4"]


class Receiver:
    """A ReplyReceiver that notes what it was told, and then does what the test wants."""

    def __init__(self, then=lambda: None):
        self.told, self.then = [], then

    def done(self):
        return bool(self.told)

    def set_result(self, replies):
        self.told.append(replies)
        self.then()

    def set_exception(self, error):
        self.told.append(error)
        self.then()


async def test_receiver_that_closes_the_connection_ends_the_reading(connection):
    receivers = [Receiver(connection.close), Receiver(), Receiver()]
    for receiver in receivers:
        connection.send_for(receiver, pack("PING"), 1)  # the replies come together
    await asyncio.to_thread(wait_until, lambda: all(receiver.done() for receiver in receivers))
    assert receivers[0].told == [[b"PONG"]]
    assert [type(each.told[0]) for each in receivers[1:]] == [RedisUnavailableError] * 2
    late = Receiver()
    connection.send_for(late, pack("PING"), 1)
    assert isinstance(late.told[0], RedisUnavailableError)


async def test_fault_of_one_receiver_hides_the_loss_from_no_other(connection):
    def fail():
        raise ZeroDivisionError

    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    receivers = [Receiver(fail), Receiver()]
    for receiver in receivers:
        connection.send_for(receiver, pack("BLPOP", "never", 0), 1)
    connection.close()
    assert [len(each.told) for each in receivers] == [1, 1]
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


async def test_error_replies_stand_in_the_list_and_stop_nothing(connection, namespace):
    key = f"{namespace}:k"
    replies = await connection.send(
        pack("SET", key, "text") + pack("INCR", key) + pack("NOSUCH") + pack("GET", key) + pack("LPOP", key),
        5,
    )
    assert [isinstance(reply, hiredis.ReplyError) for reply in replies] == [False, True, True, False, True]
    assert replies[0::3] == [b"OK", b"text"]
    assert str(replies[4]).startswith("WRONGTYPE")
    assert await connection.execute("GET", key) == b"text"


async def test_execute_raises_error_replies(connection):
    with pytest.raises(hiredis.ReplyError, match="unknown command"):
        await connection.execute("NOSUCH")
    assert await connection.execute("PING") == b"PONG"


async def test_kinds_of_replies(connection, namespace):
    key = f"{namespace}:h"
    missing = pack("XREAD", "STREAMS", f"{key}:s", "0")
    replies = await connection.send(
        pack("HSET", key, "a", 1) + pack("HGETALL", key) + pack("GET", f"{key}:none") + missing, 4
    )
    assert replies == [1, [b"a", b"1"], None, None]


async def test_huge_values(connection, namespace):
    value = b"\r\n$-*+" * 2_000_000  # 12 MB
    async with asyncio.timeout(PATIENCE_S):
        replies = await connection.send(
            pack("SET", f"{namespace}:k", value) + pack("GET", f"{namespace}:k"), 2
        )
    assert replies == [b"OK", value]


async def test_reply_in_pieces(peer):
    connection, server = peer
    future = connection.send(pack("A") + pack("B"), 2)
    for byte in b"$3\r\nab\xff\r\n:7\r\n":
        server.transport.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await future == [b"ab\xff", 7]


async def test_transfer_time_excludes_the_latency(peer, monkeypatch):
    connection, server = peer
    times = iter([100.0, 107.0])
    future = connection.send(pack("TIME") + pack("GET", "k"), 2)
    monkeypatch.setattr(connection, "_loop", SimpleNamespace(time=lambda: next(times)))
    server.transport.write(b"+first\r\n$3\r\na")
    async with asyncio.timeout(PATIENCE_S):
        while not connection._waiting[0].begun_at:
            await asyncio.sleep(0.001)
    server.transport.write(b"bc\r\n")
    assert await future == [b"first", b"abc"]
    assert connection.transfer_s == 7.0


async def test_transfer_time_of_a_reply_in_one_piece_is_zero(peer):
    connection, server = peer
    future = connection.send(pack("TIME") + pack("GET", "k"), 2)
    server.transport.write(b"+first\r\n$3\r\nabc\r\n")
    assert await future == [b"first", b"abc"]
    assert connection.transfer_s == 0.0


async def test_cancelled_batch_does_not_disturb_others(connection):
    first, second, third = (connection.send(pack("ECHO", n), 1) for n in range(3))
    second.cancel()
    assert await third == [b"2"]
    assert await first == [b"0"]


async def test_commands_of_one_loop_turn_are_one_write(peer):
    connection, server = peer
    writes = []
    transport = connection._transport

    class Counting:
        def write(self, data):
            writes.append(data)
            transport.write(data)

        def abort(self):
            transport.abort()

    connection._transport = Counting()
    futures = [connection.send(pack("PING"), 1) for _ in range(100)]
    await asyncio.sleep(0)
    assert writes == [pack("PING") * 100]
    server.transport.write(b"+PONG\r\n" * 100)
    assert await asyncio.gather(*futures) == [[b"PONG"]] * 100


# Loss


async def test_lost_connection_fails_batches_under_way_and_later_ones(own_redis):
    losses = []
    connection = await connect(own_redis, lambda: losses.append(connection.connected))
    own_redis.pause()
    futures = [connection.send(pack("PING"), 1) for _ in range(10)]
    cancelled = connection.send(pack("PING"), 1)
    cancelled.cancel()
    await asyncio.sleep(0)
    own_redis.process.kill()
    for future in futures:
        assert "lost" in await lost(future)
    assert not connection.connected
    assert losses == [False], "told once, when it was over"
    assert "lost" in await lost(connection.send(pack("PING"), 1))
    assert "lost" in await lost(connection.execute("PING"))
    connection.close()
    assert losses == [False]


async def test_replies_that_came_before_the_loss_count(peer):
    connection, server = peer
    first, second = connection.send(pack("A"), 1), connection.send(pack("B") + pack("C"), 2)
    server.transport.write(b"+one\r\n+half of the second\r\n")
    server.transport.close()
    assert await first == [b"one"]
    await lost(second)


async def test_close_fails_a_batch_that_waits(own_link, own_redis):
    own_redis.pause()
    future = own_link.send(pack("PING"), 1)
    own_link.close()
    assert "closed" in await lost(future)
    assert not own_link.connected
    own_link.close()


async def test_closing_before_the_write(connection):
    future = connection.send(pack("PING"), 1)
    connection.close()
    await lost(future)


async def test_connection_without_an_answer_in_time_is_closed(own_redis, monkeypatch):
    monkeypatch.setattr(pipeline, "WATCH_INTERVAL_S", 0.02)
    losses = []
    connection = await connect(own_redis, lambda: losses.append(1))
    assert await connection.send(pack("PING"), 1, timeout_s=0.1) == [b"PONG"]
    own_redis.pause()
    first = connection.send(pack("PING"), 1, timeout_s=0.1)
    second = connection.send(pack("PING"), 1, timeout_s=60)
    assert "in time" in await lost(first)
    assert "in time" in await lost(second)
    assert losses == [1]


async def test_process_that_was_stopped_itself_keeps_its_connection(own_link, monkeypatch):
    """The reply lies in the socket while the loop is blocked past the time limit: it is read, not given up."""
    loop = asyncio.get_running_loop()
    connection = own_link
    future = connection.send(pack("PING"), 1, timeout_s=0.05)
    await asyncio.sleep(0)  # it is written
    wait_until(lambda: loop.time() > connection._waiting[0].deadline)
    # As uvloop does: timers first, then what can be read.
    connection._watch.cancel()
    connection._check_deadline()
    assert await future == [b"PONG"]
    assert connection.connected


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"\x00\x00"])
async def test_connection_to_something_else_than_redis_is_closed(peer, garbage):
    connection, server = peer
    future = connection.send(pack("PING"), 1)
    server.transport.write(garbage)
    assert "not its protocol" in await lost(future)
    assert not connection.connected


async def test_connection_that_was_never_made_fails_every_batch():
    connection = PipelinedConnection()
    assert not connection.connected
    assert "not connected" in await lost(connection.send(pack("PING"), 1))
    connection.close()


async def test_failed_batch_without_an_owner_is_not_reported_by_asyncio(own_redis):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    connection = await connect(own_redis)
    own_redis.pause()
    connection.send(pack("PING"), 1)
    connection.close()
    connection.send(pack("PING"), 1)
    del connection
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_each_batch_fails_with_its_own_exception(peer):
    connection, _ = peer
    futures = [connection.send(pack("PING"), 1) for _ in range(2)]
    connection.close()
    futures.append(connection.send(pack("PING"), 1))
    futures.append(connection.send(pack("PING"), 1))
    assert len({id(future.exception()) for future in futures}) == 4


# Slow, but coming


async def dribble(peer, data, piece, every_s):
    for start in range(0, len(data), piece):
        peer.transport.write(data[start : start + piece])
        await asyncio.sleep(every_s)


async def test_big_reply_that_keeps_coming_is_waited_for(peer, monkeypatch):
    """It takes many times its timeout; those behind it wait as well."""
    monkeypatch.setattr(pipeline, "WATCH_INTERVAL_S", 0.02)
    connection, server = peer
    value = b"x" * 40_000
    big = connection.send(pack("A"), 1, timeout_s=0.25)
    behind = connection.send(pack("B"), 1, timeout_s=0.25)
    started = time.monotonic()
    await dribble(server, b"$40000\r\n" + value + b"\r\n", 2_000, 0.05)
    assert time.monotonic() - started > 3 * 0.25
    assert await big == [value]
    server.transport.write(b"+OK\r\n")
    assert await behind == [b"OK"]


async def test_many_small_replies_that_keep_coming_are_waited_for(peer, monkeypatch):
    monkeypatch.setattr(pipeline, "WATCH_INTERVAL_S", 0.02)
    connection, server = peer
    futures = [connection.send(pack("A"), 1, timeout_s=0.25) for _ in range(15)]
    await dribble(server, b":1\r\n" * 15, 4, 0.05)
    assert await asyncio.gather(*futures) == [[1]] * 15


async def test_trickle_does_not_keep_a_connection(peer, monkeypatch):
    monkeypatch.setattr(pipeline, "WATCH_INTERVAL_S", 0.02)
    connection, server = peer
    future = connection.send(pack("A"), 1, timeout_s=0.25)
    trickle = asyncio.create_task(dribble(server, b"$40000\r\n" + b"x" * 40_000, 1, 0.01))
    assert "in time" in await lost(future)
    trickle.cancel()


async def test_big_command_that_is_still_being_sent_is_waited_for(monkeypatch):
    """Nothing comes back before it has arrived, which takes many times its timeout."""
    monkeypatch.setattr(pipeline, "WATCH_INTERVAL_S", 0.02)
    value, answered = b"x" * 3_000_000, []

    def serve(listener):
        sock, _ = listener.accept()
        got, expected = 0, len(pack("SET", "k", value))
        while got < expected:
            got += len(sock.recv(100_000))
            time.sleep(0.03)  # it is what a thin pipe does, no synchronisation
        sock.sendall(b"+OK\r\n")
        answered.append(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        _, connection = await asyncio.get_running_loop().create_connection(
            PipelinedConnection, *listener.getsockname()
        )
        started = time.monotonic()
        assert await connection.send(pack("SET", "k", value), 1, timeout_s=0.2) == [b"OK"]
        assert time.monotonic() - started > 3 * 0.2
        await serving
        connection.close()
        answered.pop().close()


async def test_lost_connection_frees_the_memory_of_partial_replies(peer):
    connection, server = peer
    tracemalloc.start()
    try:
        future = connection.send(pack("A") + pack("B"), 2)
        server.transport.write(b"$1000000\r\n" + b"x" * 1_000_000 + b"\r\n$9000000\r\n" + b"x" * 3_000_000)
        async with asyncio.timeout(PATIENCE_S):
            while connection.received_bytes < 4_000_000:
                await asyncio.sleep(0.005)
        connection.close()
        await lost(future)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 500_000
        assert not connection._reader.has_data()
    finally:
        tracemalloc.stop()
