"""The SDK's mesh client with its wire and its source replaced, all else as it is."""

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

from toska_mesh.guard import PROBE_SECONDS, ContainedTasks, Guarded, HttpProber
from toska_mesh.sdk.client import CallOptions
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.sources import Source
from toska_mesh.sdk.transport import Remote
from toska_mesh.testing.fake_registry import ADDRESS
from toska_mesh.testing.handlers import PROBER
from toska_mesh.testing.network import MemoryNetwork
from toska_mesh.testing.transport import FakeDialler, FakeTransport


def connect_options() -> ConnectOptions:
    """Whatever the environment says, the mesh is the fake one."""
    return ConnectOptions(provider="consul", consul_address=ADDRESS)


class WiredMesh(Mesh):
    """A `Mesh` whose calls go over the memory network. `transport` is open and belongs to the caller."""

    def __init__(
        self,
        network: MemoryNetwork,
        transport: FakeTransport,
        source: Source,
        rng: Random,
        name: str = "",
        calls: CallOptions | None = None,
    ) -> None:
        super().__init__(
            connect_options(),
            name=name,
            calls=calls,
            source=source,
            rng=rng,
        )
        self._network = network
        self._wire = transport

    def _compose(self, transport: Any, tasks: ContainedTasks, loop: asyncio.AbstractEventLoop) -> None:
        super()._compose(self._wire, tasks, loop)

    def _guard(self, kind: type[Any], prober: Any, directory: Any, tasks: Any, loop: Any) -> Any:
        if kind is Remote:
            prober = HttpProber(FakeDialler(self._network), PROBER)
        elif kind is Guarded:
            prober = _ConnectProber(self._network)
        return super()._guard(kind, prober, directory, tasks, loop)


class _ConnectProber:
    """`guard.Prober`: whether the port takes a connection."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    async def probe(self, target: Guarded) -> bool:
        endpoint = target.instance.endpoint
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                transport, _ = await self._network.connect((endpoint.host, endpoint.port), asyncio.Protocol)
                transport.abort()
                return True
        return False
