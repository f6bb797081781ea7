"""The embedded registry on a free port of the test's own loop, for tests with real sockets and a real clock.

It is `toska-registry` without its process: the same API over the same state, kept in memory. A daemon, an SDK or any
Consul client can be pointed at `url`.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count
from types import TracebackType
from typing import Self

from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import SCHEME
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry
from toska_mesh.registryd.inside import open_registry
from toska_mesh.registryd.memory import MemoryStore
from toska_mesh.testing.clock import VirtualLoop

_HOST = "127.0.0.1"
_LASTING_SECONDS = 3600
"""TTL of what a test registers by hand: nobody beats for it."""


class EmbeddedRegistry:
    """`async with` it, or use the fixture `mesh_registry`. Stopped and started it keeps its port."""

    def __init__(self, *, token: str = "") -> None:
        """With a token every request has to carry it, as with a registry that asks for one."""
        self._token = token
        self._store = MemoryStore()
        self._port = 0
        self._serving: AsyncExitStack | None = None
        self._numbers = count(1)

    @property
    def url(self) -> str:
        """What `CONSUL_ADDRESS` would be. Stays the same while the registry is stopped."""
        return f"http://{_HOST}:{self._port}"

    @property
    def is_running(self) -> bool:
        return self._serving is not None

    async def start(self, *, wiped: bool = False) -> None:
        """Serve, again on the same port. `wiped`: everything that was registered is forgotten."""
        if isinstance(asyncio.get_running_loop(), VirtualLoop):
            raise RuntimeError(
                "mesh_registry has real sockets and needs the real clock; on a virtual clock use fake_mesh instead"
            )
        if self._serving is not None:
            raise RuntimeError(f"the registry at {self.url} runs already")
        if wiped:
            self._store.wipe()
        async with AsyncExitStack() as stack:
            self._port = await stack.enter_async_context(
                open_registry(self._store, host=_HOST, port=self._port, token=self._token)
            )
            self._serving = stack.pop_all()

    async def stop(self) -> None:
        """Be gone: connections are refused from now on."""
        serving, self._serving = self._serving, None
        if serving is not None:
            await serving.aclose()

    async def register(
        self,
        service: str,
        port: int,
        *,
        address: str = _HOST,
        instance_id: str = "",
        metadata: Mapping[str, str] | None = None,
        status: HealthStatus = HealthStatus.HEALTHY,
        ttl_seconds: int = _LASTING_SECONDS,
    ) -> InstanceId:
        """Register an instance as a service would; give its id. Unless metadata is given it is an HTTP mesh member."""
        known_as = InstanceId(instance_id or f"{service}-{next(self._numbers)}")
        registration = Registration(
            ServiceName(service),
            known_as,
            address,
            port,
            {SCHEME: "http"} if metadata is None else metadata,
            ttl_seconds=ttl_seconds,
            status=status,
        )
        async with self._client() as registry:
            await registry.register(registration)
        return known_as

    async def report(self, instance_id: str, status: HealthStatus, output: str = "") -> None:
        """Say how an instance is. Raises InstanceNotFoundError when there is none."""
        async with self._client() as registry:
            await registry.report_health(InstanceId(instance_id), status, output)

    async def deregister(self, instance_id: str) -> None:
        """Raises InstanceNotFoundError when there is none."""
        async with self._client() as registry:
            await registry.deregister(InstanceId(instance_id))

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Everything registered under the name, whatever its health, sorted by id."""
        async with self._client() as registry:
            return await registry.instances(ServiceName(service))

    def _client(self) -> "_Asking":
        return _Asking(ConsulOptions(self.url, token=self._token))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class _Asking:
    """A client for one question, so that nothing of the test's is open while the registry is stopped."""

    def __init__(self, options: ConsulOptions) -> None:
        self._client = ConsulClient(options)

    async def __aenter__(self) -> ConsulRegistry:
        return ConsulRegistry(await self._client.__aenter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, exc, trace)
