"""What goes over the wire: connections, streams both ways, deadlines while reading, TLS, what services hear."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trustme
from aiohttp import web
from tests.integration.faults.mesh import Mesh as FaultyMesh
from tests.integration.faults.mesh import in_thread
from tests.support.wait import eventually

from toska_mesh.errors import UpstreamConnectError, UpstreamError, UpstreamTimeoutError
from toska_mesh.resilience import Deadline
from toska_mesh.sdk import CallOptions, Client, ConnectOptions, Mesh
from toska_mesh.sdk import context as contexts

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Called:
    """A mesh with one called service, whose instances the test writes itself."""

    def __init__(self, faulty: FaultyMesh, stack: AsyncExitStack) -> None:
        self.faulty = faulty
        self._stack = stack
        self.mesh: Mesh

    async def open(self, tls: ssl.SSLContext | None = None, **options: Any) -> Client:
        connect = ConnectOptions(provider="consul", consul_address=self.faulty.registry.url)
        calls = CallOptions(slow_start_seconds=0.0, **options)
        self.mesh = await self._stack.enter_async_context(Mesh(connect, calls=calls, tls=tls))
        client = self.mesh.client(self.faulty.service)
        await eventually(lambda: self.mesh.explain(self.faulty.service)["known"])
        return client

    async def raw(self, name: str, serve: Serve, tls: ssl.SSLContext | None = None, **metadata: str) -> None:
        """An instance that is a function of its connections."""
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        await self._stack.enter_async_context(_closing(server))
        port = server.sockets[0].getsockname()[1]
        await in_thread(lambda: self.faulty.register(f"{self.faulty.service}-{name}", port, **metadata))

    async def app(self, handler: Any) -> None:
        """An instance that is an aiohttp application."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        await in_thread(lambda: self.faulty.register(f"{self.faulty.service}-app", runner.addresses[0][1]))

    def in_flight(self) -> int:
        return sum(row["in_flight"] for row in self.mesh.explain(self.faulty.service)["instances"])


@asynccontextmanager
async def _closing(server: asyncio.Server) -> AsyncIterator[None]:
    yield
    server.close()


@pytest.fixture
async def called(mesh: FaultyMesh) -> AsyncIterator[Called]:
    async with AsyncExitStack() as stack:
        yield Called(mesh, stack)


class Counting:
    """Answers every request, and counts connections and requests."""

    def __init__(self, requests_per_connection: int = 1_000_000, resets: bool = False) -> None:
        self.connections = 0
        self.requests = 0
        self._most = requests_per_connection
        self._resets = resets

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        served = 0
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                if served == self._most:
                    break  # without a word, as a server does whose time for idle connections is over
                served += 1
                writer.write(OK)
        except (EOFError, OSError):
            pass
        finally:
            if self._resets:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            writer.close()


async def test_connections_are_kept_and_a_dead_one_costs_a_counted_try(called: Called) -> None:
    server = Counting(requests_per_connection=2)
    await called.raw("one", server)
    client = await called.open()
    answers = [await client.get("/") for _ in range(4)]
    assert [await answer.text() for answer in answers] == ["ok"] * 4
    # The third request meets the end of its connection, the pause before the next try is the client's own.
    assert [answer.attempts for answer in answers] == [1, 1, 2, 1]
    assert (server.connections, server.requests) == (2, 5)


async def test_a_post_that_meets_a_dying_connection_is_not_repeated(called: Called) -> None:
    server = Counting(requests_per_connection=1, resets=True)
    await called.raw("one", server)
    client = await called.open()
    assert (await client.post("/")).status == 200
    with pytest.raises(UpstreamConnectError, match=r"closed the connection|the connection broke"):
        await client.post("/")
    assert server.requests == 2


async def test_what_cannot_be_repeated_goes_over_a_fresh_connection(called: Called) -> None:
    server = Counting()
    await called.raw("one", server)
    client = await called.open()
    for _ in range(3):
        assert (await client.post("/")).status == 200
    assert server.connections == 1
    await asyncio.sleep(1.2)  # longer than a connection counts as fresh
    assert (await client.post("/")).status == 200
    assert server.connections == 2


async def test_bodies_stream_in_both_directions(called: Called) -> None:
    heard: list[bytes] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for chunk in request.content.iter_any():
            heard.append(chunk)
            await answer.write(chunk)
        await answer.write_eof()
        return answer

    await called.app(echo)
    client = await called.open()
    words = asyncio.Queue[bytes]()

    async def body() -> AsyncIterator[bytes]:
        while word := await words.get():
            yield word

    words.put_nowait(b"zero")
    async with asyncio.timeout(10), client.post("/", data=body()) as answer:
        for word in (b"one", b"two", b""):
            said = await answer.content.readany()
            assert said == heard[-1]
            assert called.in_flight() == 1
            words.put_nowait(word)
        assert await answer.read() == b""
    assert heard == [b"zero", b"one", b"two"]
    await eventually(lambda: called.in_flight() == 0)


async def test_an_answer_that_nobody_reads_to_its_end_frees_its_place(called: Called) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with suppress(ConnectionError):  # the caller leaves
            for _ in range(1000):
                await answer.write(b"x" * 1000)
                await asyncio.sleep(0.01)
        return answer

    await called.app(stream)
    client = await called.open()
    async with client.get("/") as answer:
        assert await answer.content.readexactly(10) == b"x" * 10
        assert called.in_flight() == 1
    await eventually(lambda: called.in_flight() == 0)
    row = called.mesh.explain(called.faulty.service)["instances"][0]
    assert (row["breaker"], row["breaker_failures"]) == ("closed", 0)


async def test_reading_whole_is_bound_to_the_call_s_deadline_and_a_stream_is_not(called: Called) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(5):
            await answer.write(b"x")
            await asyncio.sleep(0.2)
        return answer

    await called.app(slow)
    client = await called.open(timeout_seconds=0.5)
    with pytest.raises(UpstreamTimeoutError, match="had begun and was not complete in time"):
        await (await client.get("/")).text()
    await eventually(lambda: called.in_flight() == 0)
    async with client.get("/") as answer:
        assert b"".join([chunk async for chunk in answer.content.iter_any()]) == b"xxxxx"


async def test_an_answer_that_breaks_off_says_whose_it_was(called: Called) -> None:
    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        await writer.drain()
        writer.close()

    await called.raw("one", breaks_off)
    client = await called.open()
    answer = await client.get("/")
    with pytest.raises(UpstreamError, match=f"GET / at {called.faulty.service}-one: the answer broke off") as caught:
        await answer.read()
    assert caught.value.instance == f"{called.faulty.service}-one"


async def test_what_is_no_http_is_a_failed_try(called: Called) -> None:
    async def talks_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    await called.raw("one", talks_nonsense)
    client = await called.open(retries=1)
    with pytest.raises(UpstreamConnectError, match="what came is no HTTP answer"):
        await client.get("/")


async def test_instances_with_tls_are_verified(called: Called) -> None:
    ours, others = trustme.CA(), trustme.CA()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.issue_cert("127.0.0.1").configure_cert(server_tls)
    server = Counting()
    await called.raw("one", server, server_tls, scheme="https")
    trusting = ssl.create_default_context()
    ours.configure_trust(trusting)
    client = await called.open(tls=trusting)
    assert await (await client.get("/")).text() == "ok"

    distrusting = ssl.create_default_context()
    others.configure_trust(distrusting)
    other = await called.open(tls=distrusting, retries=0)
    with pytest.raises(UpstreamConnectError, match="certificate verification failed"):
        await other.get("/")
    assert server.requests == 1


async def test_the_service_hears_who_asks_for_how_long_and_for_whom(called: Called) -> None:
    async def tell(request: web.Request) -> web.Response:
        return web.json_response(dict(request.headers))

    await called.app(tell)
    client = await called.open()
    deadline = Deadline(asyncio.get_running_loop().time() + 5.0)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    context = contexts.RequestContext("corr-1", "req-1", (("traceparent", parent),), deadline)
    with contexts.serving_request(context):
        answer = await client.post("/", json={"a": 1}, headers={"X-Mine": "1"})
        heard = {name.lower(): value for name, value in (await answer.json()).items()}
    assert (heard["x-correlation-id"], heard["x-request-id"], heard["x-mine"]) == ("corr-1", "req-1", "1")
    assert heard["content-type"] == "application/json"
    assert heard["traceparent"].split("-")[1] == parent.split("-")[1]
    assert heard["traceparent"] != parent, "the call has a span of its own"
    assert 0 < int(heard["x-toska-timeout-ms"]) <= 5000


async def test_a_body_that_fails_is_its_caller_s_failure(called: Called) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise LookupError("no such row")

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    await called.app(take)
    client = await called.open()
    for _ in range(3):
        with pytest.raises(LookupError, match="no such row"):
            await client.put("/", data=broken())
    row = called.mesh.explain(called.faulty.service)["instances"][0]
    assert (row["breaker"], row["breaker_failures"], row["in_flight"]) == ("closed", 0, 0)
    assert (await client.put("/", data=b"x")).status == 200


async def test_a_cancelled_call_is_cancelled_at_the_instance(called: Called) -> None:
    was_left = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not await reader.read():
            was_left.set()
        writer.close()

    await called.raw("one", waits)
    client = await called.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.get("/")
    async with asyncio.timeout(5):
        await was_left.wait()
    assert called.in_flight() == 0
