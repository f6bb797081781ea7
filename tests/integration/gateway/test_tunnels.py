"""WebSocket and other protocols behind `Upgrade` (RFC 9110 section 7.8)."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from tests.integration.gateway.harness import REQUEST, Backend, Caller, running_gateway
from tests.support.wait import eventually

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
        assert gateway.proxy.clients, "cut although it moved"
        await eventually(lambda: not gateway.proxy.clients, what="the end of a silent tunnel")


async def test_a_new_table_leaves_tunnels_alone() -> None:
    async with Backend(echo) as backend, Backend() as other, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(UPGRADE)
        gateway.route({"orders": [other]})
        client.send(b"still here")
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(16) == b"early;still here"


async def test_websocket_of_a_real_client_and_server() -> None:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket

    app = web.Application()
    app.router.add_get("/ws", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend = Backend()
    backend.port = runner.addresses[0][1]
    try:
        async with running_gateway(backend) as gateway:
            url = f"http://127.0.0.1:{gateway.port}/api/orders/ws"
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
                for size in (3, 3000, 300_000):
                    await socket.send_str("a" * size)
                    assert await socket.receive_str(timeout=5) == "A" * size
    finally:
        await runner.cleanup()
