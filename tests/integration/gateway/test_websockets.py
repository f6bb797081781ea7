"""WebSocket (RFC 6455) through the gateway: a client library and a server library that know nothing of each other."""

import asyncio
import contextlib
import signal
import socket as raw_socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.integration.gateway.harness import REQUEST, Backend, Gateway, instance, running_gateway
from tests.integration.gateway.test_tls import Files
from tests.support.ports import free_port
from tests.support.servers import DaemonProcess, RegistryServer
from tests.support.wait import eventually
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode

from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

MESSAGES = 10_000
SECONDS = 30

Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


async def echo(peer: web.WebSocketResponse) -> None:
    async for message in peer:
        if message.type is aiohttp.WSMsgType.TEXT:
            await peer.send_str(message.data)
        else:
            await peer.send_bytes(message.data)


class Server(Backend):
    """An instance with a real WebSocket server at `/ws`; every other path answers `ok`."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        super().__init__(**options)
        self.handler = handler
        self.peers: list[web.WebSocketResponse] = []
        self.over = 0

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/ws":
            return web.Response(text="ok")
        peer = web.WebSocketResponse(max_msg_size=0)
        await peer.prepare(request)
        self.peers.append(peer)
        try:
            await self.handler(peer)
        finally:
            self.over += 1
        return peer

    async def __aenter__(self) -> "Server":
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()


@contextlib.asynccontextmanager
async def talking(gateway: Gateway, **options: Any) -> AsyncIterator[ClientConnection]:
    scheme = "wss" if options.get("ssl") else "ws"
    async with (
        asyncio.timeout(SECONDS),
        connect(f"{scheme}://127.0.0.1:{gateway.port}/api/orders/ws", proxy=None, max_size=None, **options) as client,
    ):
        yield client


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_of_every_kind(compression: str | None) -> None:
    async with (
        Server(echo) as server,
        running_gateway(server) as gateway,
        talking(gateway, compression=compression) as client,
    ):
        extensions = [extension.name for extension in client.protocol.extensions]
        assert extensions == (["permessage-deflate"] if compression else [])
        for message in ("", "ä€𝄞", "a" * 300_000, b"", bytes(range(256)) * 4000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["frag", "men", "", "ted"])
        assert await client.recv() == "fragmented"
        await client.send([b"\0" * 70_000, b"\1" * 70_000])
        assert await client.recv() == b"\0" * 70_000 + b"\1" * 70_000
        await (await client.ping(b"are you there"))  # the server's pong, with the same payload
        (peer,) = server.peers
        await peer.ping(b"and you")
        await peer.send_str("after the ping")
        assert await client.recv() == "after the ping"


@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_ten_thousand_messages_each_way(kind: str) -> None:
    def message(number: int) -> str | bytes:
        text = f"{number}:" + "x" * (number % 200)
        return text if kind == "text" else text.encode()

    async def speak_and_listen(peer: web.WebSocketResponse) -> None:
        async def speak() -> None:
            for number in range(MESSAGES):
                text = message(number)
                await (peer.send_str(text) if isinstance(text, str) else peer.send_bytes(text))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak())
            for number in range(MESSAGES):
                received.append((await peer.receive()).data == message(number))

    received: list[bool] = []
    async with Server(speak_and_listen) as server, running_gateway(server) as gateway, talking(gateway) as client:

        async def speak() -> None:
            for number in range(MESSAGES):
                await client.send(message(number))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak())
            for number in range(MESSAGES):
                assert await client.recv() == message(number)
        await eventually(lambda: len(received) == MESSAGES, what="every message at the server")
        assert all(received)


@pytest.mark.parametrize("change", ["replaced", "one of two removed", "the service removed"])
async def test_a_route_change_in_the_middle_of_ten_thousand_messages(change: str) -> None:
    async with (
        Server(echo) as server,
        Server(echo) as other,
        running_gateway(server) as gateway,
        talking(gateway) as client,
    ):

        async def speak() -> None:
            for number in range(MESSAGES):
                await client.send(str(number))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak())
            for number in range(MESSAGES):
                assert await client.recv() == str(number)
                if number == MESSAGES // 3:
                    if change == "one of two removed":
                        gateway.route({"orders": [server, other]})
                        gateway.route({"orders": [instance("orders", 1, other)]})
                    else:
                        gateway.route({} if change == "the service removed" else {"orders": [other]})
        assert len(server.peers) == 1
        assert not other.peers
        assert gateway.in_flight == 1
        answer = await gateway.get()
        assert answer.status == (404 if change == "the service removed" else 200)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 4000])
@pytest.mark.parametrize("closer", ["client", "server"])
async def test_close_codes(closer: str, code: int) -> None:
    seen: list[tuple[int | None, object]] = []

    async def handler(peer: web.WebSocketResponse) -> None:
        if closer == "server":
            await peer.close(code=code, message=b"because")
            return
        message = await peer.receive()
        seen.append((peer.close_code, message.extra))

    async with Server(handler) as server, running_gateway(server) as gateway:
        async with talking(gateway) as client:
            if closer == "client":
                await client.close(code, "because")
                await eventually(lambda: bool(seen), what="the close at the server")
                assert seen == [(code, "because")]
            else:
                with pytest.raises(ConnectionClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "because")
        await gateway.settled()
        assert gateway.outcomes() == {}


async def test_a_client_that_vanishes_is_noticed_by_the_server() -> None:
    async with Server(echo) as server, running_gateway(server) as gateway:
        async with talking(gateway) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            client.transport.abort()
            await eventually(lambda: server.over == 1, what="the server's end")
        await gateway.settled()


async def test_a_drain_cuts_a_websocket_only_at_its_deadline() -> None:
    async with Server(echo) as server, running_gateway(server) as gateway, talking(gateway) as client:
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(gateway.proxy.drain(0.5))
            for number in range(3):
                await client.send(str(number))
                assert await client.recv() == str(number)
            assert not drain.done()
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == CloseCode.ABNORMAL_CLOSURE
        await eventually(lambda: server.over == 1, what="the server's end")


@pytest.mark.parametrize("listener", ["ws", "wss"])
@pytest.mark.parametrize("instances", ["http", "https"])
async def test_tls_on_either_side(listener: str, instances: str, tmp_path: Any) -> None:
    files = Files(tmp_path)
    variables = {"GATEWAY_UPSTREAM_CA_FILE": files.ca}
    if listener == "wss":
        variables |= {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key}
    large = "x" * 2_000_000
    async with (
        Server(echo, tls=files.server() if instances == "https" else None) as server,
        running_gateway(**variables) as gateway,
    ):
        gateway.route({"orders": [instance("orders", 0, server, scheme=instances)]})
        async with talking(gateway, ssl=files.client() if listener == "wss" else None) as client:
            for message in ("small", large, b"binary"):
                await client.send(message)
                assert await client.recv() == message
            await client.close(4001, "enough")
            await eventually(lambda: server.peers[0].close_code == 4001)
        await gateway.settled()
        assert gateway.outcomes() == {}


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ],
    ids=["426", "200", "403"],
)
async def test_a_refused_upgrade_leaves_the_connections_usable(refusal: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(refusal)
        with pytest.raises(InvalidStatus) as refused:
            async with talking(gateway):
                pass
        assert refused.value.response.body == b"no"
        client = await gateway.connect()
        upgrade = (
            b"GET /api/orders/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        for _ in range(3):
            assert (await client.ask(upgrade)).body == b"no"
            assert (await client.ask(REQUEST)).body == b"no"
        assert backend.connections == 1
        assert backend.requests[0].get("Sec-WebSocket-Key") is not None


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_leaves_an_open_websocket_until_the_drain_is_over(
    workers: int, registry_factory: Callable[..., RegistryServer]
) -> None:
    registry = await asyncio.to_thread(registry_factory)
    port, admin_port = free_port(), free_port()
    env = {
        "CONSUL_ADDRESS": registry.url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(admin_port),
        "GATEWAY_WORKERS": str(workers),
        "GATEWAY_DRAIN_SECONDS": "3",
    }
    daemon = DaemonProcess("toska-gateway", env, f"http://127.0.0.1:{admin_port}/health/ready")
    async with Server(echo) as server, ConsulClient(ConsulOptions(address=registry.url)) as client:
        registration = Registration(
            ServiceName("orders"), InstanceId("orders-1"), "127.0.0.1", server.port, {"scheme": "http"}, 3600
        )
        await ConsulRegistry(client).register(registration)
        try:
            await asyncio.to_thread(daemon.start)
            async with (
                asyncio.timeout(SECONDS),
                connect(f"ws://127.0.0.1:{port}/api/orders/ws", proxy=None) as socket,
            ):
                daemon.signal(signal.SIGTERM)
                await eventually(lambda: is_refused(port), what="the closed port")
                for number in range(100):
                    await socket.send(str(number))
                    assert await socket.recv() == str(number)
                with pytest.raises(ConnectionClosedError):
                    await socket.recv()
                assert socket.close_code == CloseCode.ABNORMAL_CLOSURE
            assert await asyncio.to_thread(daemon.wait, 20) == 0
            assert "Traceback" not in daemon.log_text()
            if workers == 1:
                assert [event["outcome"] for event in daemon.events() if event.get("path") == "/api/orders/ws"] == [
                    "drained"
                ]
        finally:
            await asyncio.to_thread(daemon.close)


def is_refused(port: int) -> bool:
    with raw_socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
