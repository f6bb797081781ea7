"""Bodies of any size in bounded memory, in both directions, and what happens when a side stops or leaves."""

import asyncio
import contextlib
import socket

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, Gateway, TruncatedError, running_gateway
from tests.support.wait import eventually

from toska_mesh.resilience import State

MEGABYTE = 1024 * 1024
POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LEFT = "client-left"


def buffered(gateway: Gateway) -> int:
    """Bytes that the gateway holds for its clients."""
    return sum(client.transport.get_write_buffer_size() for client in gateway.proxy.clients)


def small_buffers() -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    return client


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_slow_reader_pauses_the_instance(framing: str) -> None:
    size, sent = 24 * MEGABYTE, 0
    heads = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\n\r\n",
    }

    async def script(caller: Caller) -> None:
        nonlocal sent
        await caller.request()
        await caller.send(heads[framing])
        part = bytes(65536)
        for _ in range(size // len(part)):
            await caller.send(b"10000\r\n" + part + b"\r\n" if framing == "chunked" else part)
            sent += len(part)
        if framing == "chunked":
            await caller.send(b"0\r\n\r\n")

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        with small_buffers() as raw:
            raw.connect(("127.0.0.1", gateway.port))
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(raw, REQUEST)
            await asyncio.sleep(0.5)
            before = sent
            await asyncio.sleep(0.2)
            assert sent == before < size, "the instance was not paused"
            assert buffered(gateway) < MEGABYTE
            received = 0
            async with asyncio.timeout(20):
                while received < size:
                    part = await asyncio.get_running_loop().sock_recv(raw, MEGABYTE)
                    assert part
                    received += len(part)
                    assert buffered(gateway) < MEGABYTE
        assert gateway.breakers == {State.CLOSED}


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_slow_instance_pauses_the_client(framing: str) -> None:
    size = 24 * MEGABYTE
    go = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.head()
        await go.wait()
        received = 0
        while received < size:
            received += len(await caller.reader.read(MEGABYTE))
        await caller.send(OK)

    async with (
        Backend(script) as backend,
        running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=0) as gateway,
    ):
        client = await gateway.connect()
        part = bytes(65536)
        client.send(CHUNKED if framing == "chunked" else POST + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(part)):
            client.send(b"10000\r\n" + part + b"\r\n" if framing == "chunked" else part)
        if framing == "chunked":
            client.send(b"0\r\n\r\n")
        await asyncio.sleep(0.5)
        before = client.writer.transport.get_write_buffer_size()
        await asyncio.sleep(0.2)
        assert client.writer.transport.get_write_buffer_size() == before > 0, "the client was not paused"
        go.set()
        assert (await client.answer()).status == 200


async def test_each_event_arrives_at_once() -> None:
    go = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go.wait()
        await caller.send(b"data: 2\n\n")

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(REQUEST)
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"data: 1\n\n")
            go.set()
            await client.reader.readuntil(b"data: 2\n\n")
            assert (await client.reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")


async def test_each_part_of_an_upload_arrives_at_once() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        assert await caller.reader.readexactly(8) == b"3\r\nabc\r\n"
        await caller.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        assert await caller.reader.readexactly(12) == b"2\r\nde\r\n0\r\n\r\n"
        await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"3\r\nabc\r\n")
        async with asyncio.timeout(5):
            assert b" 102 " in await client.reader.readuntil(b"\r\n\r\n")
            client.send(b"2\r\nde\r\n0\r\n\r\n")
            assert (await client.answer()).status == 200


async def test_expect_100_continue() -> None:
    async def script(caller: Caller) -> None:
        head = await caller.head()
        assert head is not None
        assert head.get("Expect") == "100-continue"
        await caller.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await caller.reader.readexactly(3) == b"abc"
        await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(POST + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
        async with asyncio.timeout(5):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        answer = await client.answer()
        assert (answer.status, answer.interim) == (200, [])


async def test_expect_100_continue_declined() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        answer = await client.ask(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert (answer.status, answer.get("Connection")) == (417, "close")
        assert await client.is_closed()


async def test_an_early_answer_arrives_while_the_client_still_sends() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(POST + b"Content-Length: 8000000\r\n\r\n" + bytes(4_000_000))
        answer = await client.answer()
        assert (answer.status, answer.body, answer.get("Connection")) == (401, b"no", "close")
        assert await client.is_closed()
        assert (await gateway.get("/health")).status == 200
        assert gateway.breakers == {State.CLOSED}


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    cancelled = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.wait_closed()
        cancelled.set()

    for leave in ("close", "reset"):
        cancelled.clear()
        async with Backend(script) as backend, running_gateway(backend) as gateway:
            client = await gateway.connect()
            client.send(REQUEST)
            await eventually(lambda backend=backend: backend.connections == 1)
            getattr(client, leave)()
            async with asyncio.timeout(5):
                await cancelled.wait()
            await eventually(lambda gateway=gateway: gateway.outcomes() == {LEFT: 1})
            assert gateway.in_flight == 0
            assert gateway.breakers == {State.CLOSED}


@pytest.mark.parametrize("framing", [b"Content-Length: 100000000\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_a_client_that_leaves_ends_the_stream_it_was_reading(framing: bytes) -> None:
    ended = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        with contextlib.suppress(ConnectionError):
            await caller.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
            while not caller.reader.at_eof():
                await caller.send(b"3\r\nabc\r\n")
                await asyncio.sleep(0.01)
        ended.set()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(REQUEST)
        await client.reader.readuntil(b"abc")
        client.close()
        async with asyncio.timeout(5):
            await ended.wait()
        await eventually(lambda: gateway.outcomes() == {LEFT: 1})


async def test_a_half_closed_client_gets_its_answers() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await asyncio.sleep(0.05)
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(REQUEST + REQUEST)
        client.writer.write_eof()
        for _ in range(2):
            assert (await client.answer()).body == b"ok"
        assert await client.is_closed()


async def test_a_client_that_leaves_within_its_upload() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        for end in ("write_eof", "close"):
            client = await gateway.connect()
            client.send(POST + b"Content-Length: 100\r\n\r\nabc")
            await eventually(lambda: gateway.in_flight == 1)
            getattr(client.writer, end)()
            await eventually(lambda: gateway.in_flight == 0)
        assert gateway.outcomes() == {LEFT: 2}
        assert gateway.breakers == {State.CLOSED}


async def test_a_pooled_connection_is_usable_after_a_slow_reader() -> None:
    """A client that paused the instance's connection must not leave it paused for the next one."""
    size = 8 * MEGABYTE

    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            body = bytes(size) if request.target == "/large" else b"ok"
            await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect(limit=2**16)
        for _ in range(3):
            client.send(REQUEST.replace(b"orders/", b"orders/large"))
            await asyncio.sleep(0.1)
            assert len((await client.answer()).body) == size
            assert (await (await gateway.connect()).ask(REQUEST)).body == b"ok"


async def test_pipelined_large_answers_stay_bounded_for_a_client_that_does_not_read() -> None:
    body = bytes(4 * MEGABYTE)
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client = await gateway.connect(limit=1024)
        client.send(REQUEST * 20)
        await asyncio.sleep(0.5)
        assert buffered(gateway) < MEGABYTE
        assert len(backend.requests) < 20
        for _ in range(20):
            assert len((await client.answer()).body) == len(body)


async def test_a_moving_upload_has_no_time_limit_and_a_stopped_one_has() -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.8, GATEWAY_HEADER_TIMEOUT_SECONDS=0.5) as gateway,
    ):
        for head, part, end in (
            (POST + b"Content-Length: 2000\r\n\r\n", b"a" * 200, b""),
            (CHUNKED, b"c8\r\n" + b"a" * 200 + b"\r\n", b"0\r\n\r\n"),
        ):
            client = await gateway.connect()
            client.send(head)
            for _ in range(10):
                await asyncio.sleep(0.2)
                client.send(part)
            client.send(end)
            assert (await client.answer()).status == 200
        client = await gateway.connect()
        client.send(CHUNKED + b"3\r\nabc\r\n")
        answer = await client.answer()
        assert (answer.status, answer.get("Connection")) == (408, "close")
        assert gateway.breakers == {State.CLOSED}


async def test_a_stopped_answer_is_cut() -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.5) as gateway:
        client = await gateway.connect()
        client.send(REQUEST)
        with pytest.raises(TruncatedError):
            await client.answer()


async def test_a_reader_that_stops_is_cut_and_a_slow_one_is_not() -> None:
    body = bytes(6 * MEGABYTE)
    async with Backend() as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.6) as gateway:
        backend.script = backend.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        loop = asyncio.get_running_loop()
        with small_buffers() as slow, small_buffers() as stopped:
            for raw in (slow, stopped):
                raw.connect(("127.0.0.1", gateway.port))
                raw.setblocking(False)
                await loop.sock_sendall(raw, REQUEST)
            received = 0
            for _ in range(40):
                received += len(await loop.sock_recv(slow, 4096))
                await asyncio.sleep(0.1)
            await eventually(lambda: len(gateway.proxy.clients) == 1)
            while received < len(body):
                received += len(await loop.sock_recv(slow, MEGABYTE))


@pytest.mark.parametrize("tries", [1, 2])
async def test_trailers_of_an_upload_arrive_also_on_a_second_try(tries: int) -> None:
    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            backend.requests.append(request)
            is_last = len(backend.requests) == tries
            await caller.send(OK if is_last else b"HTTP/1.1 503 Not now\r\nContent-Length: 0\r\n\r\n")

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        head = CHUNKED.replace(b"POST", b"PUT").replace(b"\r\n\r\n", b"\r\nTrailer: X-Sum\r\n\r\n")
        assert (await client.ask(head + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")).status == 200
        assert [request.trailers for request in backend.requests] == [[("X-Sum", "1")]] * tries
        assert [request.body for request in backend.requests] == [b"abc"] * tries


async def test_a_slow_writer_on_either_side_is_waited_for() -> None:
    """Byte by byte, heads included: slow is not stopped."""

    async def trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
        for number in range(len(data)):
            writer.write(data[number : number + 1])
            await writer.drain()
            await asyncio.sleep(0.005)

    async def script(caller: Caller) -> None:
        request = await caller.request()
        assert request is not None
        assert request.body == b"abcdef"
        await trickle(
            caller.writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
        )

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.5) as gateway:
        client = await gateway.connect()
        await trickle(client.writer, CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.trailers) == (b"ok", [("X-Sum", "1")])
