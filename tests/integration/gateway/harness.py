"""A gateway in the test's own loop, instances that are scripted byte by byte, and a client that reads strictly."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from toska_mesh.admin import Health, HealthState
from toska_mesh.gateway.client import ClientConnection
from toska_mesh.gateway.listener import Listener, upstream_tls
from toska_mesh.gateway.local import health_handlers
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.resilience import State
from toska_mesh.router import RouteTable, RoutingPolicy
from toska_mesh.settings import load

SECONDS = 10.0
"""Far above what any step takes; only a hang reaches it."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class TruncatedError(Exception):
    """The other side ended in the middle of a message."""


@dataclass(slots=True)
class Message:
    """A request or an answer, taken apart without mercy."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list["Message"] = field(default_factory=list)
    framing: str = "none"
    """`none`, `length`, `chunked` or `close`."""

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


async def read_head(reader: asyncio.StreamReader) -> Message | None:
    """The head of the next message; None at a clean end."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise TruncatedError(f"in a head: {exc.partial!r}") from exc
        return None
    start, *lines = raw[:-4].decode("latin-1").split("\r\n")
    assert "\n" not in raw.replace(b"\r\n", b"").decode("latin-1"), raw
    return Message(start, _fields(lines))


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for line in lines:
        name, colon, value = line.partition(": ")
        assert colon, f"no field line: {line!r}"
        assert name, f"no name: {line!r}"
        assert name == name.strip(), f"spaces around a name: {line!r}"
        pairs.append((name, value))
    return pairs


async def read_body(reader: asyncio.StreamReader, message: Message, *, until_close: bool) -> None:
    """Fill in body and trailers; TruncatedError when the connection ends first."""
    length = message.get("Content-Length")
    coding = message.get("Transfer-Encoding")
    assert length is None or coding is None, "both lengths"
    try:
        if coding is not None:
            assert coding == "chunked"
            message.framing = "chunked"
            await _read_chunks(reader, message)
        elif length is not None:
            message.framing = "length"
            message.body = await reader.readexactly(int(length))
        elif until_close:
            message.framing = "close"
            message.body = await reader.read()
    except (asyncio.IncompleteReadError, ConnectionResetError) as exc:
        raise TruncatedError(f"in a body: {exc!r}") from exc


async def _read_chunks(reader: asyncio.StreamReader, message: Message) -> None:
    while True:
        size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
        if not size:
            break
        message.body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    lines = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        lines.append(line[:-2].decode("latin-1"))
    message.trailers = _fields(lines)


# -- instances


class Caller:
    """A connection that the gateway made to an instance."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> Message | None:
        return await read_head(self.reader)

    async def request(self) -> Message | None:
        """The next whole request; None when the gateway has closed."""
        message = await read_head(self.reader)
        if message is not None:
            await read_body(self.reader, message, until_close=False)
        return message

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def wait_closed(self) -> None:
        """Until the gateway ends the connection; what it still sends is thrown away."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


class _TappedReader(asyncio.StreamReader):
    """Writes down what comes, for those who want to see the bytes."""

    def __init__(self, received: bytearray) -> None:
        super().__init__()
        self._received = received

    def feed_data(self, data: bytes) -> None:
        self._received += data
        super().feed_data(data)


Script = Callable[[Caller], Awaitable[None]]


class Backend:
    """One instance: `script` runs for every connection, `requests` holds what came whole by `answering` scripts."""

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None):
        self.script = script or self.answer(OK)
        self.host = host
        self.tls = tls
        self.port = 0
        self.requests: list[Message] = []
        self.received: list[bytearray] = []
        """Per connection, every byte that came, before anybody reads it as HTTP."""
        self.connections = 0
        self.truncated = 0
        """Requests that never became whole, because their client or the gateway gave them up."""
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    def answer(self, *answers: bytes) -> Script:
        """Read requests whole, and give them these answers; the last one again and again."""

        async def script(caller: Caller) -> None:
            number = 0
            while (request := await caller.request()) is not None:
                self.requests.append(request)
                await caller.send(answers[min(number, len(answers) - 1)])
                number += 1

        return script

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, self.host, 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _accept(self) -> asyncio.StreamReaderProtocol:
        received = bytearray()
        self.received.append(received)
        return asyncio.StreamReaderProtocol(_TappedReader(received), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        caller = Caller(reader, writer)
        try:
            await self.script(caller)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except TruncatedError:
            self.truncated += 1
        except Exception as exc:
            self.failures.append(exc)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if exc_info[0] is None:
            assert not self.failures, self.failures


# -- clients


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, method: str = "GET") -> Message:
        """The next final answer with its interim ones; TruncatedError when it does not come whole."""
        async with asyncio.timeout(SECONDS):
            interim = []
            while True:
                try:
                    message = await read_head(self.reader)
                except ConnectionResetError as exc:
                    raise TruncatedError("reset before a head") from exc
                if message is None:
                    raise TruncatedError("closed before a head")
                if message.status >= 200 or message.status == 101:
                    break
                interim.append(message)
            message.interim = interim
            if method != "HEAD" and message.status not in (101, 204, 304):
                await read_body(self.reader, message, until_close=True)
            return message

    async def ask(self, data: bytes, method: str = "GET") -> Message:
        self.send(data)
        return await self.answer(method)

    async def is_closed(self) -> bool:
        """Whether the gateway ends the connection, without another byte."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    async def everything(self) -> bytes:
        """All that comes until the end of the connection."""
        data = b""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65536):
                    data += part
        return data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        Caller(self.reader, self.writer).reset()


# -- the gateway

REQUEST = b"GET /api/orders/ HTTP/1.1\r\nHost: shop.example\r\n\r\n"


class Gateway:
    """Proxy and listener on a free port of loopback."""

    def __init__(self, proxy: Proxy, listener: Listener, settings: GatewaySettings) -> None:
        self.proxy = proxy
        self.listener = listener
        self.settings = settings
        self.clients: list[Client] = []

    @property
    def port(self) -> int:
        return self.listener.port

    async def connect(self, tls: ssl.SSLContext | None = None, limit: int = 2**16, **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, limit=limit, **options)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def get(self, path: str = "/api/orders/", headers: str = "", method: str = "GET") -> Message:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            request = f"{method} {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{headers}\r\n"
            return await client.ask(request.encode("latin-1"), method)
        finally:
            client.close()

    def route(self, services: Mapping[str, list["Backend | Instance"]]) -> None:
        """Swap the table."""
        catalog = {
            ServiceName(name): tuple(
                item if isinstance(item, Instance) else instance(name, number, item)
                for number, item in enumerate(backends)
            )
            for name, backends in services.items()
        }
        proxy = self.proxy
        proxy.use_table(
            RouteTable.build(
                CatalogSnapshot(services=catalog, version=1),
                policy=RoutingPolicy(slow_start_seconds=0),
                previous=proxy.table,
                make_target=proxy.make_upstream,
                now=proxy.clock(),
                rng=proxy.rng,
            )
        )

    @property
    def in_flight(self) -> int:
        return sum(upstream.in_flight for upstream in self.proxy.upstreams())

    @property
    def breakers(self) -> set[State]:
        return {upstream.circuit.state for upstream in self.proxy.upstreams()}

    @property
    def recorded(self) -> int:
        """Exchanges that were counted at their end."""
        return sum(sum(stats.statuses.values()) for stats in self.proxy.stats.services.values())

    def outcomes(self, service: str = "orders") -> dict[str, int]:
        return dict(self.proxy.stats.of(service).outcomes)

    async def settled(self) -> None:
        """Until no client is left and nothing is in flight upstream."""
        async with asyncio.timeout(SECONDS):
            while self.proxy.clients or self.in_flight:
                await asyncio.sleep(0.01)
        assert not any(upstream.waiting for upstream in self.proxy.upstreams())


def instance(service: str, number: int, backend: Backend, **metadata: str) -> Instance:
    return Instance(
        ServiceName(service),
        InstanceId(f"{service}-{number}"),
        Endpoint(backend.host, backend.port),
        HealthStatus.HEALTHY,
        {"scheme": "http"} | metadata,
    )


def settings_from(**variables: object) -> GatewaySettings:
    environment = {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": "0",
        "GATEWAY_RATE_LIMIT_ENABLED": "false",
        "GATEWAY_RETRY_BASE_MS": "1",
        "GATEWAY_RETRY_JITTER_MS": "0",
    } | {name: str(value) for name, value in variables.items()}
    return load(GatewaySettings, environment).settings


@contextlib.asynccontextmanager
async def running_gateway(
    *backends: Backend, configure: Callable[[Proxy], None] | None = None, options: Any = None, **variables: object
) -> AsyncIterator[Gateway]:
    """A gateway whose service `orders` has these instances; `variables` are its environment.

    At the end every exchange must have been recorded, and no connection may be left.
    """
    settings = settings_from(**variables)
    async with asyncio.TaskGroup() as tasks:
        # The system's authorities take longer to load than most tests: only for those that are about them.
        is_about_tls = not variables.keys().isdisjoint(("GATEWAY_UPSTREAM_CA_FILE", "GATEWAY_UPSTREAM_TLS_VERIFY"))
        tls = upstream_tls(settings) if is_about_tls else None
        proxy = Proxy(settings, tasks, access_log=None, upstream_tls=tls, **(options(tasks) if options else {}))
        health = Health()
        health.set("routes", HealthState.HEALTHY)
        proxy.local = health_handlers(health)
        if configure is not None:
            configure(proxy)
        listener = Listener(settings, lambda: ClientConnection(proxy))
        await listener.open()
        gateway = Gateway(proxy, listener, settings)
        gateway.route({"orders": list(backends)})
        tick = tasks.create_task(proxy.run())
        try:
            yield gateway
            for client in gateway.clients:
                client.close()
            await gateway.settled()
        finally:
            tick.cancel()
            await listener.close()
            await proxy.drain(0)
            for upstream in proxy.upstreams():
                upstream.leave()
