"""Every way in which a request can end, and whether the two connections that it used serve the next one."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from tests.integration.gateway.harness import (
    OK,
    REQUEST,
    SECONDS,
    Backend,
    Caller,
    Message,
    TruncatedError,
    read_body,
    running_gateway,
)
from tests.support.wait import eventually

KEPT, CLOSED = True, False
CUT = 0
"""Instead of a status: the answer does not come whole."""

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Behaviour = Callable[[Caller, Message], Awaitable[None]]


def line(method: str, fields: str = "", body: str = "", version: str = "1.1") -> bytes:
    return f"{method} /api/orders/case HTTP/{version}\r\nHost: a\r\n{fields}\r\n{body}".encode()


GET = line("GET")
POST = line("POST", "Content-Length: 3\r\n", "abc")
POST_CHUNKED = line("POST", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n")
HALF_A_POST = line("POST", "Content-Length: 100000\r\n", "abc")
EXPECTING = line("POST", "Expect: 100-continue\r\nContent-Length: 3\r\n")


def answer(data: bytes) -> Behaviour:
    """Read the request whole and answer."""

    async def behave(caller: Caller, request: Message) -> None:
        await read_body(caller.reader, request, until_close=False)
        await caller.send(data)

    return behave


def early(data: bytes) -> Behaviour:
    """Answer as soon as the head is there."""

    async def behave(caller: Caller, request: Message) -> None:
        await caller.send(data)

    return behave


def then(behave: Behaviour, end: str) -> Behaviour:
    """End the connection afterwards."""

    async def both(caller: Caller, request: Message) -> None:
        await behave(caller, request)
        await asyncio.sleep(0.02)  # so that a reset does not overtake what was sent
        getattr(caller, end)()

    return both


async def welcome_the_body(caller: Caller, request: Message) -> None:
    await caller.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await answer(OK)(caller, request)


async def say_nothing(caller: Caller, request: Message) -> None:
    await caller.wait_closed()


class Ending(NamedTuple):
    request: bytes
    behaviours: tuple[Behaviour, ...]
    """For the tries of this request, one after the other; what comes later is answered with 200."""
    status: int
    client: bool
    instance: bool
    """Whether the connections are kept."""


ENDINGS: dict[str, Ending] = {
    # The answer's framing.
    "a length": Ending(GET, (answer(OK),), 200, KEPT, KEPT),
    "no bytes": Ending(GET, (answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),), 200, KEPT, KEPT),
    "chunks": Ending(GET, (answer(CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),), 200, KEPT, KEPT),
    "trailers": Ending(GET, (answer(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"),), 200, KEPT, KEPT),
    "the close": Ending(GET, (then(answer(b"HTTP/1.1 200 OK\r\n\r\nok"), "close"),), 200, KEPT, CLOSED),
    "more than its length": Ending(GET, (answer(OK + b"more"),), 200, KEPT, CLOSED),
    "an interim answer first": Ending(GET, (answer(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK),), 200, KEPT, KEPT),
    "HEAD with a length": Ending(
        line("HEAD"), (answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),), 200, KEPT, KEPT
    ),
    "HEAD with chunks": Ending(line("HEAD"), (answer(CHUNKED),), 200, KEPT, KEPT),
    "HEAD without framing": Ending(line("HEAD"), (answer(b"HTTP/1.1 200 OK\r\n\r\n"),), 200, KEPT, KEPT),
    "204": Ending(GET, (answer(b"HTTP/1.1 204 No Content\r\n\r\n"),), 204, KEPT, KEPT),
    "304": Ending(GET, (answer(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),), 304, KEPT, KEPT),
    # What the instance says about its connection.
    "Connection: close of the instance": Ending(GET, (then(answer(CLOSING), "close"),), 200, KEPT, CLOSED),
    "HTTP/1.0 of the instance": Ending(
        GET, (answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),), 200, KEPT, CLOSED
    ),
    # What the client says about its own.
    "Connection: close of the client": Ending(line("GET", "Connection: close\r\n"), (answer(OK),), 200, CLOSED, KEPT),
    "HTTP/1.0 of the client": Ending(line("GET", version="1.0"), (answer(OK),), 200, CLOSED, KEPT),
    "HTTP/1.0 of a client that wants more": Ending(
        line("GET", "Connection: keep-alive\r\n", version="1.0"), (answer(OK),), 200, KEPT, KEPT
    ),
    "chunks for HTTP/1.0 of a client that wants more": Ending(
        line("GET", "Connection: keep-alive\r\n", version="1.0"),
        (answer(CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),),
        200,
        CLOSED,
        KEPT,
    ),
    # Bodies of requests.
    "a request with a length": Ending(POST, (answer(OK),), 200, KEPT, KEPT),
    "a request with chunks": Ending(POST_CHUNKED, (answer(OK),), 200, KEPT, KEPT),
    "an early answer, the body unread": Ending(HALF_A_POST, (early(OK),), 200, CLOSED, CLOSED),
    "100-continue": Ending(EXPECTING, (welcome_the_body,), 200, KEPT, KEPT),
    "100-continue refused": Ending(
        EXPECTING, (early(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),), 417, CLOSED, CLOSED
    ),
    "an upgrade that nobody wants": Ending(
        line("GET", "Connection: Upgrade\r\nUpgrade: x\r\n"),
        (answer(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"),),
        426,
        KEPT,
        KEPT,
    ),
    # Failures and second tries.
    "an error of the instance": Ending(
        POST, (answer(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"),), 500, KEPT, KEPT
    ),
    "tried again after 503": Ending(
        GET, (answer(b"HTTP/1.1 503 Not now\r\nContent-Length: 2\r\n\r\nno"), answer(OK)), 200, KEPT, KEPT
    ),
    "tried again after a 503 that closes": Ending(
        GET, (then(answer(b"HTTP/1.1 503 Not now\r\n\r\nno"), "close"), answer(OK)), 200, KEPT, KEPT
    ),
    "tried again after a reset": Ending(GET, (then(answer(b""), "reset"), answer(OK)), 200, KEPT, KEPT),
    "tried again after silence": Ending(GET, (say_nothing, answer(OK)), 200, KEPT, KEPT),
    "a reset that is not tried again": Ending(POST, (then(answer(b""), "reset"),), 502, KEPT, CLOSED),
    "silence that is not tried again": Ending(POST, (say_nothing,), 504, KEPT, CLOSED),
    "nonsense": Ending(POST, (answer(b"SSH-2.0-OpenSSH_9.2\r\n"),), 502, KEPT, CLOSED),
    "truncated": Ending(GET, (then(answer(OK[:-1]), "close"),), CUT, CLOSED, CLOSED),
    "truncated chunks": Ending(GET, (then(answer(CHUNKED + b"5\r\nhel"), "reset"),), CUT, CLOSED, CLOSED),
    # Answers of the gateway itself.
    "no route": Ending(b"GET /api/nobody/ HTTP/1.1\r\nHost: a\r\n\r\n", (), 404, KEPT, KEPT),
    "health": Ending(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", (), 200, KEPT, KEPT),
    "no route, and a body on its way": Ending(
        b"POST /api/nobody/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", (), 404, CLOSED, KEPT
    ),
    "too large": Ending(line("POST", "Content-Length: 99999999999\r\n"), (), 413, CLOSED, KEPT),
    "a bad request": Ending(b"GET / HTTP/1.1\r\n\r\n", (), 400, CLOSED, KEPT),
    "no HTTP": Ending(b"\x16\x03\x01\x02\x00\x01\x00", (), 400, CLOSED, KEPT),
}


@pytest.mark.parametrize("case", ENDINGS)
async def test_connections_after(case: str) -> None:
    ending = ENDINGS[case]
    behaviours = list(ending.behaviours)

    async def script(caller: Caller) -> None:
        while (request := await caller.head()) is not None:
            behave = answer(OK)
            if request.target == "/case":
                behave = behaviours.pop(0)
            await behave(caller, request)
            if caller.writer.transport.is_closing():
                return

    async with (
        Backend(script) as backend,
        running_gateway(
            backend,
            GATEWAY_RETRY_COUNT=1,
            GATEWAY_BREAKER_FAILURE_THRESHOLD=9,
            GATEWAY_RESPONSE_TIMEOUT_SECONDS=0.5,
        ) as gateway,
    ):
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).body == b"ok"
        client.send(ending.request)
        if ending.request is EXPECTING and ending.status == 200:
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
        if ending.status == CUT:
            with pytest.raises(TruncatedError):
                await client.answer()
        else:
            said = await client.answer("HEAD" if ending.request.startswith(b"HEAD") else "GET")
            assert said.status == ending.status
            is_announced = said.get("Connection") == "close"
            assert is_announced is not ending.client, "the client is told what happens to its connection"
        assert not behaviours
        if ending.client is CLOSED:
            assert await client.is_closed()
            client = await gateway.connect()
        await eventually(lambda: gateway.in_flight == 0)
        before = backend.connections
        for _ in range(2):
            assert (await client.ask(REQUEST)).body == b"ok"
        assert backend.connections - before == (0 if ending.instance is KEPT else 1)


async def test_pipelined_requests_share_both_connections() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(GET + POST + GET + POST_CHUNKED + GET)
        for _ in range(5):
            assert (await client.answer()).body == b"ok"
        assert backend.connections == 1
        assert [request.method for request in backend.requests] == ["GET", "POST", "GET", "POST", "GET"]


async def test_an_instance_that_closes_while_its_connection_is_idle_costs_nobody_anything() -> None:
    """Whatever the method: the end is seen before the next request, which gets a connection of its own."""

    async def script(caller: Caller) -> None:
        request = await caller.request()
        assert request is not None
        backend.requests.append(request)
        await caller.send(OK)  # keep-alive, it says

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        client = await gateway.connect()
        for number, request in enumerate((GET, POST, POST_CHUNKED, GET, POST), 1):
            assert (await client.ask(request)).status == 200
            await eventually(lambda: not any(upstream.idle for upstream in gateway.proxy.upstreams()))
            assert backend.connections == number


@pytest.mark.parametrize(("request_bytes", "status", "tries"), [(GET, 200, 2), (POST, 502, 1), (POST_CHUNKED, 502, 1)])
async def test_a_request_that_crosses_the_close_of_its_connection(
    request_bytes: bytes, status: int, tries: int
) -> None:
    """The instance closes while the request is on its way.

    It may have been carried out, for all that can be known: only what may be repeated is sent again (RFC 9110 section
    9.2.2), and nothing is ever carried out twice.
    """
    heads = 0

    async def script(caller: Caller) -> None:
        nonlocal heads
        if backend.connections == 1:
            await caller.request()
            await caller.send(OK)
            await caller.head()
            heads += 1
            caller.reset()
            return
        while await caller.request() is not None:
            heads += 1
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).status == 200
        assert (await client.ask(request_bytes)).status == status
        assert heads == tries
        assert (await client.ask(POST)).status == 200, "and nobody is blamed for long"


@pytest.mark.parametrize("request_bytes", [POST, POST_CHUNKED])
async def test_a_connection_whose_end_has_arrived_but_was_not_read_is_not_used(request_bytes: bytes) -> None:
    """The loop finds the request and the end of the pooled connection in the same turn, the request first."""
    loop = asyncio.get_running_loop()
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        with contextlib.ExitStack() as sockets:
            listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = sockets.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            for one in (listening, client):
                one.setblocking(False)
            backend.port = listening.getsockname()[1]
            gateway.route({"orders": [backend]})
            pooled: socket.socket | None = None
            async with asyncio.timeout(SECONDS):
                for _ in range(10):
                    client.send(request_bytes)
                    if pooled is not None:
                        pooled.close()
                    instance, _ = await loop.sock_accept(listening)
                    sockets.enter_context(instance)
                    assert await loop.sock_recv(instance, 65536)
                    await loop.sock_sendall(instance, OK)
                    assert b" 200 OK" in await loop.sock_recv(client, 65536)
                    await eventually(lambda: gateway.in_flight == 0)
                    pooled = instance
