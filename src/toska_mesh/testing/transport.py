"""The wire of a mesh client in a fake mesh: the SDK's own transport over connections in memory."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from toska_mesh.model import Endpoint
from toska_mesh.sdk.transport import AiohttpTransport, TellingConnector
from toska_mesh.testing.network import MemoryConnector, MemoryNetwork


class _TellingMemoryConnector(TellingConnector, MemoryConnector):
    pass


class FakeTransport(AiohttpTransport):
    """`sdk.transport.Transport` for what listens in a memory network."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__()
        self._network = network

    def make_connector(self, keep_seconds: float) -> TellingConnector:
        return _TellingMemoryConnector(self._network, limit=0, keepalive_timeout=keep_seconds)


class FakeDialler:
    """`guard.Dials`: how the guard's probes reach an instance."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    async def dial(
        self, endpoint: Endpoint, tls: ssl.SSLContext | None, make: Callable[[], Any]
    ) -> tuple[asyncio.Transport, Any]:
        return await self._network.connect((endpoint.host, endpoint.port), make)
