"""WebSocket and other protocols behind `Upgrade` (RFC 9110 section 7.8)."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.gateway.harness import REQUEST, Backend, Caller, Gateway, instance, running_gateway
from tests.integration.gateway.test_tls import Files
from tests.support.wait import eventually

MEGABYTE = 1024 * 1024

UPGRADE = b"GET /api/orders/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Own: 1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Theirs: 1\r\n\r\n"


async def echo(caller: Caller) -> None:
    head = await caller.head()
    assert head is not None
    assert (head.get("Upgrade"), head.get("Connection")) == ("echo", "Upgrade")
    await caller.send(SWITCH + b"early;")
    while data := await caller.reader.read(65536):
        await caller.send(data)


async def test_bytes_pass_both_ways_also_early_ones() -> None:
    async with Backend(echo) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        answer = await client.ask(UPGRADE + b"too soon;")
        assert (answer.status, answer.get("Upgrade"), answer.get("X-Theirs")) == (101, "echo", "1")
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(15) == b"early;too soon;"
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await client.reader.readexactly(18) == b"GET / HTTP/1.1\r\n\r\n"
            data = bytes(range(256)) * 8000
            client.send(data)
            assert await client.reader.readexactly(len(data)) == data
        client.close()
        await gateway.settled()
        assert gateway.outcomes() == {}


async def test_bytes_behind_the_request_that_still_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long read is parsed in slices; the instance may agree while others have their turns."""
    early = bytes(range(256)) * 40
    more = bytes(24 * MEGABYTE)
    received = bytearray()
    go = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        await go.wait()
        while data := await caller.reader.read(MEGABYTE):
            received.extend(data)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        waiting: list[Callable[[], None]] = []
        monkeypatch.setattr(gateway.proxy.turns, "add", waiting.append)
        client = await gateway.connect()
        assert (await client.ask(UPGRADE + early)).status == 101
        (tunnel,) = gateway.proxy.tunnels
        client.send(more)
        await eventually(lambda: tunnel._upstream.is_writing_paused, what="an instance that takes no more")
        assert waiting
        for piece in waiting:
            piece()
        assert not tunnel._client.transport.is_reading(), "reads what the instance does not take"
        go.set()
        client.writer.write_eof()
        await eventually(lambda: len(received) >= len(early + more), what="everything")
        assert received == early + more
        assert await client.is_closed()


async def test_the_last_bytes_of_either_side_arrive() -> None:
    received = bytearray()

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        size = 3_000_000 if backend.connections == 1 else 0
        if not size:
            await caller.send(bytes(3_000_000))
            return
        await asyncio.sleep(0.1)
        while data := await caller.reader.read(65536):
            received.extend(data)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        client.send(bytes(3_000_000))
        client.close()
        await eventually(lambda: len(received) == 3_000_000, what="what the client sent last")
        client = await gateway.connect()
        await client.ask(UPGRADE)
        assert len(await client.everything()) == 3_000_000


async def test_an_instance_that_declines() -> None:
    answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(answer)
        client = await gateway.connect()
        for _ in range(3):
            assert (await client.ask(UPGRADE)).status == 426
            assert (await client.ask(REQUEST)).body == b"no"
        client.send(UPGRADE + REQUEST + UPGRADE)
        for _ in range(3):
            assert (await client.answer()).body == b"no"


@pytest.mark.parametrize("talks", ["instance", "client"])
async def test_a_tunnel_lives_while_one_side_talks(talks: str) -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        for _ in range(12 if talks == "instance" else 0):
            await caller.send(b"x")
            await asyncio.sleep(0.2)
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.7) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        for _ in range(12):
            if talks == "client":
                client.send(b"x")
            await asyncio.sleep(0.2)
        assert gateway.proxy.tunnels, "cut although it moved"
        await eventually(lambda: not gateway.proxy.tunnels, what="the end of a silent tunnel")


async def test_a_new_table_leaves_tunnels_alone() -> None:
    async with Backend(echo) as backend, Backend() as other, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        gateway.route({"orders": [other]})
        client.send(b"still here")
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(16) == b"early;still here"


# -- each direction ends by itself


@pytest.mark.parametrize("when", ["before the answer", "in the tunnel"])
async def test_a_client_that_has_said_everything_still_gets_its_answer(when: str) -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        if when == "before the answer":
            await gateway_saw_the_end()
        await caller.send(SWITCH)
        question = await caller.reader.read(-1)
        await asyncio.sleep(0.1)  # long after the end of the question
        await caller.send(question * 1000)

    async def gateway_saw_the_end() -> None:
        await eventually(lambda: all(client._has_eof for client in gateway.proxy.clients))

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        if when == "before the answer":
            client.send(UPGRADE + b"question")
            client.writer.write_eof()
            assert (await client.answer()).status == 101
        else:
            await client.ask(UPGRADE)
            client.send(b"question")
            client.writer.write_eof()
        assert await client.everything() == b"question" * 1000
        await gateway.settled()
        assert gateway.outcomes() == {}


async def test_an_instance_that_has_said_everything_still_listens() -> None:
    received = bytearray()

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH + b"bye")
        caller.writer.write_eof()
        while data := await caller.reader.read(65536):
            received.extend(data)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        assert await client.everything() == b"bye"
        for _ in range(3):
            client.send(bytes(MEGABYTE))
            await client.writer.drain()
        assert gateway.in_flight == 1
        client.close()
        await gateway.settled()
        await eventually(lambda: len(received) == 3 * MEGABYTE, what="what the client said after the instance's end")
        assert gateway.outcomes() == {}


async def test_a_tunnel_with_one_silent_half_ends_by_the_idle_timeout() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        assert await caller.reader.read(-1) == b""
        await asyncio.sleep(30)  # keeps its own direction open

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.5) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        client.writer.write_eof()
        assert await client.is_closed()
        await gateway.settled()
        assert gateway.outcomes() == {"idle": 1}


@pytest.mark.parametrize("who", ["client", "instance"])
async def test_a_reset_stays_a_reset(who: str) -> None:
    """A stream that broke must not look like one that has ended."""
    seen: list[str] = []

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH + b"x")
        await caller.reader.readexactly(1)
        if who == "instance":
            caller.reset()
            return
        try:
            await caller.reader.read(1)
            seen.append("end")
        except ConnectionResetError:
            seen.append("reset")

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        await client.reader.readexactly(1)
        client.send(b"x")
        if who == "instance":
            with pytest.raises(ConnectionResetError):
                await client.reader.read(1)
        else:
            await client.writer.drain()
            client.reset()
            await eventually(lambda: bool(seen))
            assert seen == ["reset"]
        await gateway.settled()
        assert gateway.outcomes() == {"client-left" if who == "client" else "upstream-truncated": 1}


@pytest.mark.parametrize("tls", ["of the listener", "of the instance"])
async def test_with_tls_the_first_end_is_the_end_of_both_behind_the_last_bytes(tls: str, tmp_path: Path) -> None:
    """TLS connections are not half-closed; what was said before the end still arrives."""
    files = Files(tmp_path)
    received = bytearray()

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        while data := await caller.reader.read(65536):
            received.extend(data)

    is_listener = tls == "of the listener"
    variables = {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key} if is_listener else {}
    async with (
        Backend(script, tls=None if is_listener else files.server()) as backend,
        running_gateway(GATEWAY_UPSTREAM_CA_FILE=files.ca, **variables) as gateway,
    ):
        gateway.route({"orders": [instance("orders", 0, backend, scheme="http" if is_listener else "https")]})
        client = await gateway.connect(files.client() if is_listener else None)
        await client.ask(UPGRADE)
        client.send(bytes(3 * MEGABYTE))
        if is_listener:
            client.close()
        else:
            client.writer.write_eof()
            assert await client.is_closed()
        await eventually(lambda: len(received) == 3 * MEGABYTE, what="what the client said last")
        await gateway.settled()
        assert gateway.outcomes() == {}


@pytest.mark.parametrize("who", ["client", "instance"])
async def test_a_tls_connection_that_ends_without_a_goodbye_is_torn(who: str, tmp_path: Path) -> None:
    """Anybody on the way can make an end of TCP; that of TLS is only the other side's (RFC 8446 section 6.1)."""
    files = Files(tmp_path)
    seen: list[str] = []

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH + b"x")
        await caller.reader.readexactly(1)
        if who == "instance":
            tear(caller.writer)
        try:
            await caller.reader.read(1)
            seen.append("end")
        except ConnectionResetError:
            seen.append("reset")

    def tear(writer: asyncio.StreamWriter) -> None:
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)

    is_client = who == "client"
    variables = {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key} if is_client else {}
    async with (
        Backend(script, tls=None if is_client else files.server()) as backend,
        running_gateway(GATEWAY_UPSTREAM_CA_FILE=files.ca, **variables) as gateway,
    ):
        gateway.route({"orders": [instance("orders", 0, backend, scheme="http" if is_client else "https")]})
        client = await gateway.connect(files.client() if is_client else None)
        await client.ask(UPGRADE)
        await client.reader.readexactly(1)
        client.send(b"x")
        if is_client:
            tear(client.writer)
            await eventually(lambda: bool(seen))
            assert seen == ["reset"]
        else:
            with pytest.raises(ConnectionResetError):
                await client.reader.read(1)
        await gateway.settled()
        assert gateway.outcomes() == {"client-left" if is_client else "upstream-truncated": 1}


# -- backpressure


def held_bytes(gateway: Gateway) -> int:
    return sum(
        end.transport.get_write_buffer_size()
        for tunnel in gateway.proxy.tunnels
        for end in (tunnel._client, tunnel._upstream)
    )


@pytest.mark.parametrize("slow", ["client", "instance"])
async def test_a_side_that_does_not_read_pauses_the_other(slow: str) -> None:
    size, sent, received = 24 * MEGABYTE, 0, 0
    go = asyncio.Event()

    async def speak(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(size // MEGABYTE):
            writer.write(bytes(MEGABYTE))
            await writer.drain()
            sent += MEGABYTE
        writer.write_eof()

    async def listen(reader: asyncio.StreamReader) -> None:
        nonlocal received
        await go.wait()
        while part := await reader.read(MEGABYTE):
            received += len(part)

    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH)
        await (speak(caller.writer) if slow == "client" else listen(caller.reader))

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(client.reader) if slow == "client" else speak(client.writer))
            await asyncio.sleep(0.5)
            before = sent
            await asyncio.sleep(0.2)
            assert sent == before < size, "the side that speaks was not paused"
            assert held_bytes(gateway) < MEGABYTE
            go.set()
        await eventually(lambda: received == size, what="everything")


async def test_a_side_that_stops_reading_is_cut_and_a_slow_one_is_not() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(SWITCH + bytes(6 * MEGABYTE))
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_IDLE_TIMEOUT_SECONDS=0.6) as gateway:
        loop = asyncio.get_running_loop()
        with socket.socket() as slow, socket.socket() as stopped:
            for raw in (slow, stopped):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                raw.connect(("127.0.0.1", gateway.port))
                raw.setblocking(False)
                await loop.sock_sendall(raw, UPGRADE)
            for _ in range(40):
                assert await loop.sock_recv(slow, 4096)
                await asyncio.sleep(0.1)
            await eventually(lambda: len(gateway.proxy.tunnels) == 1, what="the end of the one that stopped")
            assert gateway.outcomes() == {"idle": 1}


# -- the end of the gateway


async def test_a_drain_waits_for_tunnels_as_long_as_it_may_and_then_cuts_them() -> None:
    async with Backend(echo) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        assert await client.reader.readexactly(6) == b"early;"
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(gateway.proxy.drain(0.6))
            for _ in range(3):
                client.send(b"still here")
                assert await client.reader.readexactly(10) == b"still here"
                await asyncio.sleep(0.1)
            assert not draining.done()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
        assert gateway.outcomes() == {"drained": 1}


async def test_a_drain_is_over_as_soon_as_the_last_tunnel_is() -> None:
    async with Backend(echo) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(gateway.proxy.drain(60))
            client.close()
        assert gateway.outcomes() == {}


async def test_tunnels_count_as_connections() -> None:
    async with Backend(echo) as backend, running_gateway(backend, GATEWAY_MAX_CONNECTIONS=1) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        assert (await gateway.get()).status == 503
        assert "toska_gateway_tunnels" in gateway.proxy._gauges()
        assert gateway.proxy._gauges()["toska_gateway_tunnels"][1] == 1
