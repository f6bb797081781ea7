"""What one client may take of places, time and room: each limit over real sockets, somebody else served beside it."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from tests.integration.gateway.harness import (
    OK,
    REQUEST,
    Backend,
    Caller,
    Client,
    Gateway,
    TruncatedError,
    running_gateway,
)
from tests.support.wait import eventually

from toska_mesh.gateway.client import ANSWERS_PER_TURN, SLICE_BYTES, ClientConnection
from toska_mesh.resilience import State

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = 1 << 20

NO_PROXIES = {"GATEWAY_TRUSTED_PROXIES": "192.0.2.1/32"}
"""So that addresses of loopback are ordinary clients."""

LIGHT, HEAVY = "127.0.0.2", "127.0.0.3"


async def connect_from(gateway: Gateway, address: str) -> Client:
    return await gateway.connect(local_addr=(address, 0))


def held(gateway: Gateway) -> int:
    return gateway.proxy.admission.held


class Held:
    """A backend script that answers only when told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.requests = 0

    async def __call__(self, caller: Caller) -> None:
        while await caller.request() is not None:
            self.requests += 1
            await self.may_answer.wait()
            await caller.send(OK)


@contextlib.asynccontextmanager
async def beside(gateway: Gateway, address: str = "127.0.0.1") -> AsyncIterator[list[int]]:
    """Somebody who goes on asking, on new connections and a kept one; gives the statuses so far."""
    statuses: list[int] = []
    kept = await connect_from(gateway, address)

    async def ask() -> None:
        while True:
            statuses.append((await kept.ask(REQUEST)).status)
            client = await connect_from(gateway, address)
            statuses.append((await client.ask(REQUEST)).status)
            client.close()
            gateway.clients.remove(client)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(), name="ask beside")
        try:
            await eventually(lambda: len(statuses) >= 2)
            yield statuses
            before = len(statuses)
            await eventually(lambda: len(statuses) >= before + 4)
        finally:
            asking.cancel()
    assert set(statuses) == {200}


# -- bodies


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["plain", "expect"])
@pytest.mark.parametrize("body", [b"", b"a" * 101], ids=["waits", "sends at once"])
async def test_413_comes_before_the_body_and_nothing_reaches_an_instance(expect: bytes, body: bytes) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=100) as gateway:
        client = await gateway.connect()
        answer = await client.ask(POST + expect + b"Content-Length: 101\r\n\r\n" + body)
        assert (answer.status, answer.get("Connection"), answer.interim) == (413, "close", [])
        assert await client.is_closed()
        assert backend.connections == 0


async def test_a_chunked_body_over_the_limit_ends_in_the_middle() -> None:
    received = bytearray()

    async def script(caller: Caller) -> None:
        await caller.head()
        with contextlib.suppress(ConnectionError):
            while part := await caller.reader.read(65536):
                received.extend(part)

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=1000) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"1f4\r\n" + b"a" * 500 + b"\r\n")
        await eventually(lambda: received.count(b"a") == 500)
        client.send(b"1f5\r\n" + b"b" * 501 + b"\r\n")
        assert (await client.answer()).status == 413
        assert await client.is_closed()
        await eventually(lambda: not gateway.in_flight)
        assert b"0\r\n\r\n" not in received  # the instance cannot take what it has for the whole
        assert gateway.breakers == {State.CLOSED}


async def test_an_upload_that_ignores_its_413_is_thrown_away_and_cut() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=100) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(POST + b"Content-Length: 1000000000\r\n\r\n")
        sent = 0
        async with beside(gateway):
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    while not writer.is_closing():
                        writer.write(bytes(65536))
                        await writer.drain()
                        sent += 65536
        assert sent > 65536  # it was read for a while, so that the answer could arrive
        assert backend.truncated == 0
        with contextlib.suppress(ConnectionError):
            assert (await reader.read(12)) == b"HTTP/1.1 413"
        writer.close()


async def test_chunks_of_one_byte_are_passed_on_together_and_whole() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        body = bytes(range(97, 123)) * 8000  # more than a few reads
        client.send(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        client.send(REQUEST)
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert backend.requests[0].body == body
        assert (await client.ask(REQUEST)).status == 200


async def test_many_small_chunk_extensions_are_cut_as_one_large_one_is() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED)
        for _ in range(100):
            client.send(b"1;" + b"e" * 200 + b"\r\na\r\n")
            await asyncio.sleep(0)
        assert (await client.answer()).status == 431
        assert gateway.breakers == {State.CLOSED}


# -- time


@pytest.mark.parametrize(
    "start",
    [POST + b"Content-Length: 1000000\r\n\r\n", POST + b"Content-Length: 1000\r\n\r\n", CHUNKED],
    ids=["long", "short", "chunked"],
)
async def test_a_body_that_trickles_is_a_408_and_frees_the_instance(start: bytes) -> None:
    part = b"1\r\na\r\n" if start is CHUNKED else b"a"
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=1.5, GATEWAY_MIN_BYTES_PER_SECOND=240) as gateway,
    ):
        client = await gateway.connect()
        client.send(start)
        trickling = asyncio.get_running_loop().create_task(trickle(client, part))
        async with beside(gateway):
            answer = await client.answer()
        trickling.cancel()
        assert (answer.status, answer.get("Connection")) == (408, "close")
        assert b"240 bytes/s" in answer.body
        await eventually(lambda: not gateway.in_flight)
        assert gateway.breakers == {State.CLOSED}


async def trickle(client: Client, part: bytes) -> None:
    while True:
        client.send(part)
        await asyncio.sleep(0.1)


async def test_without_a_rate_a_body_may_trickle() -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.6) as gateway,
    ):
        client = await gateway.connect()
        client.send(POST + b"Content-Length: 20\r\n\r\n")
        for _ in range(20):
            client.send(b"a")
            await asyncio.sleep(0.1)
        assert (await client.answer()).status == 200


async def test_a_body_that_waits_for_its_instance_is_not_slow() -> None:
    may_read = asyncio.Event()

    async def script(caller: Caller) -> None:
        head = await caller.head()
        assert head is not None
        await may_read.wait()
        assert len(await caller.reader.readexactly(32 * MEGABYTE)) == 32 * MEGABYTE
        await caller.send(OK)

    async with (
        Backend(script) as backend,
        running_gateway(
            backend, GATEWAY_IDLE_TIMEOUT_SECONDS=4, GATEWAY_MIN_BYTES_PER_SECOND=240, GATEWAY_MAX_REQUEST_BYTES=0
        ) as gateway,
    ):
        client = await gateway.connect()
        (connection,) = await connections(gateway, 1)
        client.send(POST + b"Content-Length: %d\r\n\r\n" % (32 * MEGABYTE) + bytes(32 * MEGABYTE))
        await eventually(lambda: connection._holds)
        connection._slack = 0.6  # less than the time that the instance takes
        await asyncio.sleep(1.5)
        may_read.set()
        assert (await client.answer()).status == 200


async def connections(gateway: Gateway, count: int) -> list[ClientConnection]:
    await eventually(lambda: len(gateway.proxy.clients) == count)
    return list(gateway.proxy.clients)


@pytest.mark.parametrize("rate", [100_000, 0], ids=["too slow", "no rate"])
async def test_a_reader_has_to_take_so_much(rate: int) -> None:
    body = bytes(4 * MEGABYTE)
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=1, GATEWAY_MIN_BYTES_PER_SECOND=rate) as gateway,
    ):
        backend.script = backend.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", gateway.port))
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, REQUEST)
        (connection,) = await connections(gateway, 1)
        await eventually(lambda: connection.is_writing_paused)
        received = 0
        for _ in range(40):
            with contextlib.suppress(ConnectionError):
                received += len(await loop.sock_recv(raw, 2000))
            if not gateway.proxy.clients:
                break
            await asyncio.sleep(0.1)
        assert bool(gateway.proxy.clients) is (rate == 0)
        raw.close()


@pytest.mark.parametrize("opening", [b"", REQUEST], ids=["new", "kept"])
async def test_a_silent_connection_ends_without_a_word_and_frees_its_place(opening: bytes) -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_HEADER_TIMEOUT_SECONDS=0.5, GATEWAY_KEEP_ALIVE_SECONDS=0.5) as gateway,
    ):
        client = await gateway.connect()
        if opening:
            await client.ask(opening)
        assert held(gateway) == 1
        assert await client.is_closed()
        await eventually(lambda: held(gateway) == 0)


# -- places


async def test_one_too_many_can_read_that_it_is_refused() -> None:
    held_up = Held()
    async with Backend(held_up) as backend, running_gateway(backend, GATEWAY_MAX_CONNECTIONS=2) as gateway:
        inside = [await gateway.connect(), await gateway.connect()]
        for client in inside:
            client.send(REQUEST)
        await eventually(lambda: held_up.requests == 2)
        for sends_first in (True, False):
            outside = await gateway.connect()
            if sends_first:
                outside.send(POST + b"Content-Length: 100000\r\n\r\n" + bytes(100_000))
            answer = await outside.answer()
            assert (answer.status, answer.get("Connection"), answer.get("Retry-After")) == (503, "close", "1")
            assert b'"too-many-connections"' in answer.body
            assert await outside.reader.read() == b""  # an end, not a reset
            outside.close()
        assert gateway.proxy.admission.refused == 2
        held_up.may_answer.set()
        for client in inside:
            assert (await client.answer()).status == 200
        inside[0].close()
        await eventually(lambda: held(gateway) == 1)
        assert (await (await gateway.connect()).ask(REQUEST)).status == 200
    assert held(gateway) == gateway.proxy.admission.leaving == 0


async def test_in_a_full_house_the_longest_idle_connection_of_the_heaviest_address_gives_way() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_CONNECTIONS=5, **NO_PROXIES) as gateway:
        light = await connect_from(gateway, LIGHT)
        await light.ask(REQUEST)
        heavy = []
        for _ in range(4):
            await asyncio.sleep(0.12)  # later than the tick by which idle times are told
            heavy.append(await connect_from(gateway, HEAVY))
            await heavy[-1].ask(REQUEST)
        await heavy[0].ask(REQUEST)
        await asyncio.sleep(0.7)
        newcomer = await connect_from(gateway, "127.0.0.4")
        assert (await newcomer.ask(REQUEST)).status == 200
        assert await heavy[1].reader.read() == b""
        for client in (light, heavy[0], heavy[2], heavy[3]):
            assert (await client.ask(REQUEST)).status == 200
        assert (held(gateway), gateway.proxy.admission.evicted, gateway.proxy.admission.refused) == (5, 1, 0)
    assert held(gateway) == 0


async def test_an_address_has_its_share_and_others_are_let_in() -> None:
    held_up = Held()
    async with (
        Backend(held_up) as backend,
        running_gateway(backend, GATEWAY_MAX_CONNECTIONS_PER_CLIENT=3, **NO_PROXIES) as gateway,
    ):
        heavy = [await connect_from(gateway, HEAVY) for _ in range(3)]
        for client in heavy:
            client.send(REQUEST)
        await eventually(lambda: held_up.requests == 3)
        refused = await connect_from(gateway, HEAVY)
        assert (await refused.answer()).status == 503
        light = await connect_from(gateway, LIGHT)
        light.send(REQUEST)
        await eventually(lambda: held_up.requests == 4)
        held_up.may_answer.set()
        assert (await light.answer()).status == 200
        for client in heavy:
            assert (await client.answer()).status == 200
        heavy[1].close()
        await eventually(lambda: held(gateway) == 3)
        assert (await (await connect_from(gateway, HEAVY)).ask(REQUEST)).status == 200


async def test_a_trusted_proxy_has_no_share() -> None:
    async with (
        Backend() as backend,
        running_gateway(
            backend, GATEWAY_MAX_CONNECTIONS_PER_CLIENT=1, GATEWAY_TRUSTED_PROXIES="127.0.0.2/32"
        ) as gateway,
    ):
        for _ in range(3):
            assert (await (await connect_from(gateway, LIGHT)).ask(REQUEST)).status == 200
        assert (await (await connect_from(gateway, HEAVY)).ask(REQUEST)).status == 200
        second = await connect_from(gateway, HEAVY)
        assert (await second.answer()).status == 503


async def test_a_tunnel_keeps_its_place_until_it_ends() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_MAX_CONNECTIONS=1) as gateway:
        client = await gateway.connect()
        answer = await client.ask(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"))
        assert answer.status == 101
        await asyncio.sleep(0.7)  # long enough to be called idle
        assert held(gateway) == 1
        second = await gateway.connect()
        assert (await second.answer()).status == 503
        client.close()
        await eventually(lambda: held(gateway) == 0)


async def test_a_flood_of_connections_from_one_address_leaves_the_house_open_to_others() -> None:
    async with (
        Backend() as backend,
        running_gateway(
            backend, GATEWAY_MAX_CONNECTIONS=60, GATEWAY_MAX_CONNECTIONS_PER_CLIENT=50, **NO_PROXIES
        ) as gateway,
    ):
        async with beside(gateway, LIGHT):
            for _ in range(300):
                attacker = await connect_from(gateway, HEAVY)
                attacker.send(b"GET / HT")
        assert gateway.proxy.admission.most_held == 50
        assert gateway.proxy.admission.refused >= 250
        assert len(gateway.proxy.clients) <= 60 + gateway.proxy.admission.max_leaving


# -- the loop


@pytest.mark.parametrize("path", ["/health", "/api/none/"])
async def test_a_client_that_pipelines_lets_others_have_their_turn(path: str) -> None:
    """No more than so many answers are given before the loop turns."""
    turns: list[int] = []
    async with Backend() as backend, running_gateway(backend) as gateway:
        loop = asyncio.get_running_loop()
        is_over = False

        def count() -> None:
            turns.append(gateway.recorded)
            if not is_over:
                loop.call_soon(count)

        count()
        client = await gateway.connect()
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 120)
        for _ in range(120):
            await client.answer()
        is_over = True
        steps = [later - before for before, later in itertools.pairwise(turns)]
        assert sum(steps) == 120
        assert max(steps) <= ANSWERS_PER_TURN + 1


async def test_a_client_whose_next_request_waits_for_its_turn_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway() as gateway:
        client = await gateway.connect()
        (connection,) = await connections(gateway, 1)
        waiting: list[Callable[[], None]] = []
        monkeypatch.setattr(gateway.proxy.turns, "add", waiting.append)
        first = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: %b\r\n\r\n"
        first %= b"x" * (SLICE_BYTES - len(first % b""))
        client.send(first + b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer()).status == 200
        assert len(waiting) == 1
        assert not connection.is_idle
        connection.expire()
        waiting[0]()
        assert (await client.answer()).status == 200
        assert connection.is_idle


async def test_a_pipeline_that_is_too_long_is_not_even_parsed_to_its_end() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        (connection,) = await connections(gateway, 1)
        begun = 0
        on_message_begin = ClientConnection.on_message_begin

        def counted(self: ClientConnection) -> None:
            nonlocal begun
            begun += 1
            on_message_begin(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClientConnection, "on_message_begin", counted)
            connection.data_received(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
            assert begun < 200
            answers = []
            with contextlib.suppress(TruncatedError):
                while len(answers) < 5000:
                    answers.append(await client.answer())
        assert 100 < len(answers) < 200
        assert answers[-1].get("Connection") == "close"
        assert {answer.status for answer in answers} == {200}


async def test_a_half_closed_client_gets_all_its_pipelined_answers() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        client.writer.write_eof()
        assert [(await client.answer()).status for _ in range(50)] == [200] * 50
