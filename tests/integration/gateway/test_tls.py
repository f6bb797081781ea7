"""TLS on either side of the gateway."""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from tests.integration.gateway.harness import (
    REQUEST,
    SECONDS,
    Backend,
    Caller,
    Client,
    TruncatedError,
    instance,
    running_gateway,
)

from toska_mesh.errors import ConfigError
from toska_mesh.gateway.listener import server_tls
from toska_mesh.gateway.settings import GatewaySettings

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n"


class Files:
    """A certificate authority and a certificate for 127.0.0.1, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate = self.authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        self.authority.cert_pem.write_to_path(self.ca)
        self.certificate.private_key_pem.write_to_path(self.key)
        for blob in self.certificate.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate.configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_listener(files: Files) -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_TLS_CERT=files.cert, GATEWAY_TLS_KEY=files.key) as gateway,
    ):
        client = await gateway.connect(files.client())
        for _ in range(2):
            assert (await client.ask(REQUEST)).body == b"ok"
        assert backend.requests[0].get("X-Forwarded-Proto") == "https"
        assert (backend.requests[0].get("Forwarded") or "").endswith("proto=https")
        large = bytes(3_000_000)
        backend.script = backend.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        other = await gateway.connect(files.client(), limit=2**20)
        assert (await other.ask(POST + b"Content-Length: %d\r\n\r\n" % len(large) + large)).status == 200
        assert len((await other.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")).body) in (2, len(large))
        refused = await gateway.connect(files.client())
        refused.send(POST + b"Content-Length: 20000000\r\n\r\n" + bytes(1_000_000))
        assert (await refused.answer()).status == 413
        plain = await gateway.connect()
        plain.send(REQUEST)
        with pytest.raises((TruncatedError, ConnectionError)):
            await plain.answer()


async def test_listener_wants_a_client_certificate(files: Files) -> None:
    variables = {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key, "GATEWAY_TLS_CLIENT_CA": files.ca}
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        known = files.client()
        files.authority.issue_cert("me").configure_cert(known)
        assert (await (await gateway.connect(known)).ask(REQUEST)).status == 200
        with pytest.raises((TruncatedError, ConnectionError, ssl.SSLError)):
            await (await gateway.connect(files.client())).ask(REQUEST)


async def test_a_truncated_answer_through_tls(files: Files) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")

    async with (
        Backend(script) as backend,
        running_gateway(backend, GATEWAY_TLS_CERT=files.cert, GATEWAY_TLS_KEY=files.key) as gateway,
    ):
        client = await gateway.connect(files.client())
        client.send(REQUEST)
        with pytest.raises((TruncatedError, ConnectionError, ssl.SSLError)):
            await client.answer()


async def test_instances_with_tls_are_verified(files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Files(tmp_path / "other")
    async with (
        Backend(tls=files.server()) as backend,
        Backend(tls=stranger.server()) as impostor,
        running_gateway(
            GATEWAY_UPSTREAM_CA_FILE=files.ca, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=100
        ) as gateway,
    ):
        gateway.route({"orders": [instance("orders", 0, backend, scheme="https")]})
        client = await gateway.connect()
        for _ in range(2):
            assert (await client.ask(REQUEST)).body == b"ok"
        large = bytes(2_000_000)
        assert (await client.ask(POST + b"Content-Length: %d\r\n\r\n" % len(large) + large)).status == 200
        assert backend.requests[-1].body == large
        assert backend.connections == 1
        gateway.route({"orders": [instance("orders", 1, impostor, scheme="HTTPS")]})
        answer = await client.ask(REQUEST)
        assert answer.status == 502
        assert not impostor.requests
        gateway.route({"orders": [instance("orders", 2, backend, scheme="http")]})
        assert (await client.ask(REQUEST)).status == 502


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("body", [b"", b"hello", bytes(100_000)], ids=len)
@pytest.mark.parametrize("says_goodbye", [True, False], ids=["close_notify", "socket closed"])
async def test_the_end_of_an_answer_that_only_tls_can_vouch_for(
    files: Files, says_goodbye: bool, body: bytes, version: str
) -> None:
    """RFC 9112 section 9.8: without close_notify anybody on the way may have ended it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        raw, _ = listening.accept()
        with raw, files.server().wrap_socket(raw, server_side=True) as connection:
            connection.settimeout(SECONDS)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n" + body)
            if says_goodbye:
                with contextlib.suppress(OSError):  # whether the gateway says goodbye, too, is its own business
                    connection.unwrap()

    async with (
        running_gateway(GATEWAY_UPSTREAM_CA_FILE=files.ca, GATEWAY_RETRY_COUNT=0) as gateway,
        asyncio.TaskGroup() as tasks,
    ):
        backend = Backend()
        backend.port = listening.getsockname()[1]
        gateway.route({"orders": [instance("orders", 0, backend, scheme="https")]})
        tasks.create_task(asyncio.to_thread(serve))
        client = await gateway.connect()
        client.send(REQUEST.replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        if says_goodbye:
            assert (await client.answer()).body == body
            assert gateway.outcomes() == {}
        else:
            with pytest.raises(TruncatedError):
                await client.answer()
            assert gateway.outcomes() == {"upstream-truncated": 1}
    listening.close()


async def test_verification_can_be_switched_off(files: Files) -> None:
    async with (
        Backend(tls=files.server()) as backend,
        running_gateway(GATEWAY_UPSTREAM_TLS_VERIFY="false") as gateway,
    ):
        gateway.route({"orders": [instance("orders", 0, backend, scheme="https")]})
        assert (await gateway.get()).body == b"ok"


async def test_unusable_files_are_a_config_error(files: Files) -> None:
    with pytest.raises(ConfigError, match="GATEWAY_TLS_CERT"):
        server_tls(GatewaySettings(tls_cert=files.ca, tls_key=files.key))


async def test_a_silent_handshake_does_not_last(files: Files) -> None:
    variables = {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key, "GATEWAY_HEADER_TIMEOUT_SECONDS": 0.5}
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        client = await gateway.connect()
        async with asyncio.timeout(5):
            assert await client.is_closed()


async def test_closing_the_port_takes_waiting_clients_and_does_not_wait_for_silent_ones(files: Files) -> None:
    variables = {"GATEWAY_TLS_CERT": files.cert, "GATEWAY_TLS_KEY": files.key}
    for settings in (variables, {}):
        async with Backend() as backend, running_gateway(backend, **settings) as gateway:
            # Connected while the loop does not run: only the kernel knows of them when the port is closed.
            waiting = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(3)]
            waiting[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            waiting[0].close()
            async with asyncio.timeout(8):
                await gateway.listener.close()
            if not settings:
                waiting[1].setblocking(False)
                reader, writer = await asyncio.open_connection(sock=waiting[1])
                client = Client(reader, writer)
                assert (await client.ask(REQUEST)).status == 200
                client.close()
            for raw in waiting[1:]:
                raw.close()
