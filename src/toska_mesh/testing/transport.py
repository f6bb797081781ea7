"""The wire of a mesh client in a fake mesh: the SDK's own transport over connections in memory."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Self

import aiohttp

from toska_mesh.model import Endpoint
from toska_mesh.sdk.transport import (
    CONNECT_SECONDS,
    FRESH_SECONDS,
    IDLE_SECONDS,
    KEEP_ALIVE_SECONDS,
    AiohttpTransport,
    Answer,
    _progress,
)
from toska_mesh.testing.network import MemoryConnector, MemoryNetwork


class _TellingConnector(MemoryConnector):
    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        _progress.get().connected()
        return connection


class FakeTransport(AiohttpTransport):
    """`sdk.transport.Transport` for what listens in a memory network."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # never used, and the system's CAs take time to load
        self._network = network

    async def __aenter__(self) -> Self:
        self._sessions = (self._session(FRESH_SECONDS), self._session(KEEP_ALIVE_SECONDS))
        return self

    def _session(self, keep_seconds: float) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=_TellingConnector(self._network, limit=0, keepalive_timeout=keep_seconds),
            response_class=Answer,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
        )
        session._retry_connection = False
        return session


class FakeDialler:
    """`guard.Dials`: how the guard's probes reach an instance."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    async def dial(
        self, endpoint: Endpoint, tls: ssl.SSLContext | None, make: Callable[[], Any]
    ) -> tuple[asyncio.Transport, Any]:
        return await self._network.connect((endpoint.host, endpoint.port), make)
