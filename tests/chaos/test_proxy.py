"""The proxy over real sockets: what goes through, what does not, and what a client sees of it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable

import pytest
from proxy import QUEUED_MAX_BYTES, Proxy

PATIENCE_S = 60.0
DELAY_S = 0.15

READ_AT_ONCE_BYTES = 256 << 10
"""What asyncio hands over in one piece."""

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that answers every line with the same line."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, limit=2 * QUEUED_MAX_BYTES)
    it = Proxy(server.sockets[0].getsockname()[1])
    await it.start()
    yield it
    await it.stop()
    server.close()
    await server.wait_closed()


async def soon(awaitable: Awaitable[bytes]) -> bytes:
    return await asyncio.wait_for(awaitable, PATIENCE_S)


async def connect(proxy: Proxy) -> Pair:
    return await asyncio.open_connection("127.0.0.1", proxy.port, limit=2 * QUEUED_MAX_BYTES)


async def exchange(pair: Pair, line: bytes = b"hello\n") -> bytes:
    pair[1].write(line)
    return await soon(pair[0].readline())


async def until_swallowed(proxy: Proxy) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not proxy.swallowed_bytes:
            await asyncio.sleep(0.005)


async def is_silent(pair: Pair) -> bool:
    """Nothing comes, and no end either, for as long as an answer through the proxy takes many times over."""
    try:
        await asyncio.wait_for(pair[0].read(1), 0.1)
    except TimeoutError:
        return True
    return False


async def close(*pairs: Pair) -> None:
    for _, writer in pairs:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_everything_passes_both_ways(proxy: Proxy):
    pair = await connect(proxy)
    assert await exchange(pair) == b"hello\n"
    large = b"x" * 2_000_000 + b"\n"
    assert await exchange(pair, large) == large
    await close(pair)


async def test_an_end_is_passed_on(proxy: Proxy):
    pair = await connect(proxy)
    assert await exchange(pair) == b"hello\n"
    pair[1].write_eof()
    assert await soon(pair[0].read()) == b""
    await close(pair)
    async with asyncio.timeout(PATIENCE_S):
        while proxy.pairs:
            await asyncio.sleep(0.005)


async def test_delay_holds_every_byte_back_and_keeps_the_order(proxy: Proxy):
    pair = await connect(proxy)
    assert await exchange(pair) == b"hello\n"
    proxy.delay(DELAY_S)
    began = time.monotonic()
    lines = [b"%d\n" % number for number in range(50)]
    for line in lines:
        pair[1].write(line)
        await pair[1].drain()
    assert [await soon(pair[0].readline()) for _ in lines] == lines
    assert time.monotonic() - began >= 2 * DELAY_S, "there and back"
    pair[1].write(b"delayed\n")
    await asyncio.sleep(0.01)
    await proxy.heal()
    pair[1].write(b"not delayed\n")
    assert await soon(pair[0].readline()) == b"delayed\n", "what follows does not overtake"
    assert await soon(pair[0].readline()) == b"not delayed\n"
    await close(pair)


async def test_delay_holds_no_more_than_its_bound(proxy: Proxy):
    pair = await connect(proxy)
    proxy.delay(DELAY_S)
    large = b"x" * (3 * QUEUED_MAX_BYTES // 2) + b"\n"
    pair[1].write(large)
    most, reading = 0, asyncio.create_task(soon(pair[0].readline()))
    while not reading.done():
        most = max([most, *(side.queued_bytes for one in proxy.pairs for side in (one.client, one.server))])
        await asyncio.sleep(0.001)
    assert reading.result() == large
    assert 0 < most < QUEUED_MAX_BYTES + 1_000_000
    await close(pair)


async def test_a_thin_pipe_passes_so_many_bytes_a_second_for_all_together(proxy: Proxy):
    pairs = [await connect(proxy) for _ in range(2)]
    proxy.thin(100_000)
    began = time.monotonic()
    large = b"x" * 20_000 + b"\n"
    assert await asyncio.gather(*(exchange(pair, large) for pair in pairs)) == [large, large]
    assert time.monotonic() - began >= 0.4, "40 kB one way, and meanwhile back"
    await proxy.heal()
    assert await exchange(pairs[0]) == b"hello\n"
    await close(*pairs)


async def test_a_thin_pipe_holds_little(proxy: Proxy):
    pair = await connect(proxy)
    proxy.thin(10_000_000)
    large = b"x" * 2_000_000 + b"\n"
    pair[1].write(large)
    most, reading = 0, asyncio.create_task(soon(pair[0].readline()))
    while not reading.done():
        most = max([most, *(side.queued_bytes for one in proxy.pairs for side in (one.client, one.server))])
        await asyncio.sleep(0.001)
    assert reading.result() == large
    assert 0 < most < 2 * READ_AT_ONCE_BYTES
    await close(pair)


async def test_cut_resets_what_is_open_and_refuses_what_is_new_until_it_heals(proxy: Proxy):
    pair = await connect(proxy)
    assert await exchange(pair) == b"hello\n"
    await proxy.cut()
    with pytest.raises(ConnectionResetError):
        await soon(pair[0].read(1))
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    await proxy.heal()
    again = await connect(proxy)
    assert await exchange(again) == b"hello\n"
    await close(pair, again)


async def test_half_open_stays_open_and_says_nothing(proxy: Proxy):
    before = await connect(proxy)
    assert await exchange(before) == b"hello\n"
    idle = await connect(proxy)
    assert await exchange(idle) == b"hello\n"
    proxy.half_open()
    during = await connect(proxy)
    before[1].write(b"anybody?\n")
    await until_swallowed(proxy)
    quiet = await connect(proxy)
    during[1].write(b"anybody?\n")
    assert await is_silent(before)
    assert await is_silent(during)

    await proxy.heal()
    assert await exchange(idle) == b"hello\n", "nothing of it was swallowed"
    before[1].write(b"and now?\n")
    assert await is_silent(before), "bytes are missing: what follows would be nonsense"
    quiet[1].write(b"and now?\n")
    assert await is_silent(quiet), "the server has never heard of it"
    after = await connect(proxy)
    assert await exchange(after) == b"hello\n"
    await close(before, during, quiet)
    assert await proxy.until_heard(PATIENCE_S)
    await close(idle, after)


async def test_a_mute_connection_that_nobody_gives_up_is_reset(proxy: Proxy):
    pair = await connect(proxy)
    proxy.half_open()
    pair[1].write(b"anybody?\n")
    await until_swallowed(proxy)
    await proxy.heal()
    assert not await proxy.until_heard(0.05)
    with pytest.raises(ConnectionResetError):
        await soon(pair[0].read(1))
    await close(pair)


@pytest.mark.parametrize("replies", [0, 3])
async def test_reset_tears_a_reply_in_the_middle(proxy: Proxy, replies: int):
    # A plain socket: a StreamReader that hears of a reset keeps what came before it to itself.
    loop = asyncio.get_running_loop()
    proxy.reset(replies)
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
        for _ in range(replies):
            await loop.sock_sendall(sock, b"hello\n")
            assert await soon(loop.sock_recv(sock, 100)) == b"hello\n"
        await loop.sock_sendall(sock, b"0123456789\n")
        assert await soon(loop.sock_recv(sock, 100)) == b"01234"
        with pytest.raises(ConnectionResetError):
            await soon(loop.sock_recv(sock, 100))
    assert proxy.resets == 1
    await proxy.heal()
    again = await connect(proxy)
    for _ in range(replies + 2):
        assert await exchange(again) == b"hello\n"
    await close(again)


async def test_what_comes_before_the_server_is_reached_is_kept(proxy: Proxy):
    pair = await connect(proxy)
    pair[1].write(b"early\n")
    assert await soon(pair[0].readline()) == b"early\n"
    await close(pair)
