"""TTL beats over a few pipelined connections: the one call that a registry service makes thousands of times a second.

A general HTTP client spends more on one such call than everything else in taking a beat together. A beat is a PUT
without a body, idempotent, answered with an empty 200 at once: so requests are written behind each other without
waiting (RFC 9112 section 9.3.2), many in one system call, and answers are matched by order. Everything else of
Consul's API goes through `client`.
"""

import asyncio
import ssl
from collections import deque
from types import TracebackType
from typing import Self, cast
from urllib.parse import quote, urlsplit

import httptools

from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId
from toska_mesh.model.metadata import DRAIN_NOTE
from toska_mesh.registry.consul.client import ConsulClient, words_of
from toska_mesh.registry.consul.codec import check_id
from toska_mesh.registry.consul.registry import ConsulRegistry

CONNECTIONS = 2
"""An agent answers the requests of one connection one after the other."""

GATHER_SECONDS = 0.002
"""How long a beat waits for others while answers are outstanding. A beat on an idle connection goes out at once."""

CALL_SECONDS = 5.0
SILENT_SECONDS = 1.0
"""A connection that lets beats wait this long without a byte is given up with the first beat whose time is up."""
MAX_WAITING = 2_000
"""Beats on one connection that have no answer yet; more than that and the registry is not keeping up."""

_MAX_NOTE_BYTES = 1000
_MAX_ANSWER_BYTES = 64 * 1024
_VERBS = {HealthStatus.HEALTHY: "pass", HealthStatus.DEGRADED: "warn", HealthStatus.UNHEALTHY: "fail"}


class _BrokenError(Exception):
    """The connection ended before the answer came; the beat may be sent again on another."""


class _Connection(asyncio.Protocol):
    """One connection and the beats that wait on it, oldest first. A beat that nobody waits for keeps its place."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._gathering: asyncio.TimerHandle | None = None
        self.waiting: deque[asyncio.Future[tuple[int, bytes]]] = deque()
        self._body = b""
        self.is_open = False
        self._silent_since = 0.0

    def is_silent(self, seconds: float) -> bool:
        """Whether beats have waited that long without a byte from the registry."""
        return bool(self.waiting) and self._loop.time() - self._silent_since >= seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def send(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        if not self.waiting:
            self._silent_since = self._loop.time()
        self.waiting.append(answer)
        if not self._unsent:
            # Like Nagle's algorithm (RFC 896): few beats are not delayed, many share the cost of a system call.
            if len(self.waiting) == 1:
                self._loop.call_soon(self._flush)
            else:
                self._gathering = self._loop.call_later(GATHER_SECONDS, self._flush)
        self._unsent.append(request)
        return answer

    def _flush(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        data, self._unsent = b"".join(self._unsent), []
        if self._transport is not None and self.is_open:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._silent_since = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self.close(f"the registry's answer is no HTTP: {exc}")
            return
        if self._unsent and len(self.waiting) == len(self._unsent):
            self._flush()  # every beat that was sent is answered

    def on_body(self, body: bytes) -> None:
        if len(self._body) < _MAX_ANSWER_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if not self.waiting:
            self.close("an answer without a question")
            return
        answer = self.waiting.popleft()
        if not answer.done():
            answer.set_result((self._parser.get_status_code(), body))
        if not self._parser.should_keep_alive():
            self.close("the registry closes the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc) if exc else "the connection was closed")

    def close(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.is_open = False
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        while self.waiting:
            answer = self.waiting.popleft()
            if not answer.done():
                answer.set_exception(_BrokenError(reason))


class BeatingRegistry(ConsulRegistry):
    """A `ConsulRegistry` whose `report_health` is pipelined. `async with` it, inside the client's own block."""

    def __init__(self, client: ConsulClient) -> None:
        super().__init__(client)
        self._client = client
        parts = urlsplit(client.address)
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._is_tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._authority = parts.netloc
        self._connections: list[_Connection | None] = [None] * CONNECTIONS
        self._dialling: list[asyncio.Lock] = [asyncio.Lock() for _ in range(CONNECTIONS)]
        self._tls: ssl.SSLContext | None = None
        self._turn = 0
        self._head = b""
        self._head_of: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._tls = self._client.ssl_context() if self._is_tls else None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            if connection is not None:
                connection.close("closing")

    async def report_health(
        self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float | None = None
    ) -> None:
        """See `Registry.report_health`."""
        verb = _VERBS.get(status)
        if verb is None:
            raise ValueError("Unknown is no health report: it says nothing, so it must not keep an instance alive")
        if status is HealthStatus.DEGRADED and output.startswith(DRAIN_NOTE):
            await self.make_way_for_drain_note(instance_id, deadline)
        note = quote(output.encode("utf-8", "replace")[:_MAX_NOTE_BYTES], safe="")
        target = f"{self._path}/v1/agent/check/{verb}/{quote(check_id(instance_id), safe='')}"
        request = f"PUT {target}{f'?note={note}' if note else ''} HTTP/1.1\r\n".encode() + self._request_head()
        ends = asyncio.get_running_loop().time() + CALL_SECONDS
        code, body = await self._ask(request, ends if deadline is None else min(ends, deadline))
        if code != 200:
            refusal = self._client.refusal(code, body)
            if code == 404 and not isinstance(refusal, InstanceNotFoundError):
                raise RegistryError(f"{self._authority} has no TTL checks: is it a Consul agent? ({refusal})")
            raise refusal

    async def _ask(self, request: bytes, deadline: float) -> tuple[int, bytes]:
        try:
            return await self._try(request, deadline)
        except _BrokenError:
            pass  # closed between two beats, as servers do with idle connections: a new one will do
        try:
            return await self._try(request, deadline)
        except _BrokenError as exc:
            raise RegistryUnavailableError(f"registry {self._authority} cannot be reached: {exc}") from exc

    async def _try(self, request: bytes, deadline: float) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        self._turn = slot = (self._turn + 1) % CONNECTIONS
        connection = self._connections[slot]
        if connection is None or not connection.is_open:
            connection = await self._dial(slot, deadline)
        if len(connection.waiting) >= MAX_WAITING:
            raise RegistryUnavailableError(f"registry {self._authority} does not keep up with the beats")
        answer = connection.send(request)
        timer = loop.call_at(deadline, _give_up, answer, self._authority)
        try:
            return await answer
        except TimeoutError as exc:
            if connection.is_silent(SILENT_SECONDS):  # and not just an impatient caller
                connection.close("the registry did not answer in time")
            raise RegistryUnavailableError(f"registry {self._authority} did not answer in time") from exc
        finally:
            timer.cancel()

    async def _dial(self, slot: int, deadline: float) -> _Connection:
        try:
            async with asyncio.timeout_at(deadline), self._dialling[slot]:
                open_one = self._connections[slot]
                if open_one is not None and open_one.is_open:
                    return open_one
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._client.tls_server_name or self._host if self._tls else None,
                )
        except TimeoutError as exc:
            raise RegistryUnavailableError(f"registry {self._authority} takes no connection in time") from exc
        except OSError as exc:
            raise RegistryUnavailableError(f"registry {self._authority} cannot be reached: {words_of(exc)}") from exc
        self._connections[slot] = connection
        return connection

    def _request_head(self) -> bytes:
        """Everything behind the request line; made anew only when a token was rotated."""
        headers = self._client.headers()
        if not self._head or headers != self._head_of:
            self._head_of = headers
            lines = [f"Host: {self._authority}", "Content-Length: 0", *(f"{k}: {v}" for k, v in headers.items())]
            self._head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        return self._head


def _give_up(answer: "asyncio.Future[tuple[int, bytes]]", authority: str) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError(authority))
